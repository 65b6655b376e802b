"""Models: loading, heads, adapters, the reward model."""

from xrlhf.models.heads import AttributeHead, ScalarHead
from xrlhf.models.loading import backbone_from_config, backbone_from_pretrained
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import load_tokenizer, prepare_tokenizer

__all__ = [
    "AttributeHead",
    "RewardModel",
    "ScalarHead",
    "backbone_from_config",
    "backbone_from_pretrained",
    "load_tokenizer",
    "prepare_tokenizer",
]
