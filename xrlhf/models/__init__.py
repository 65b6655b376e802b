"""Models: loading, heads, adapters, the reward model, language models."""

from xrlhf.models.actor_critic import ActorCritic
from xrlhf.models.causal_lm import causal_lm_from_config, causal_lm_from_pretrained
from xrlhf.models.heads import AttributeHead, ScalarHead
from xrlhf.models.loading import backbone_from_config, backbone_from_pretrained
from xrlhf.models.policy_model import PolicyModel
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import load_tokenizer, prepare_tokenizer

__all__ = [
    "ActorCritic",
    "AttributeHead",
    "PolicyModel",
    "RewardModel",
    "ScalarHead",
    "backbone_from_config",
    "backbone_from_pretrained",
    "causal_lm_from_config",
    "causal_lm_from_pretrained",
    "load_tokenizer",
    "prepare_tokenizer",
]
