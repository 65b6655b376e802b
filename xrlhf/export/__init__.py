"""Exports: the Hugging Face directory is the only door between stages."""

from xrlhf.export.adapter import export_adapter, merge_into_base, save_adapter
from xrlhf.export.policy import save_policy
from xrlhf.export.reward import export_checkpoint, save_reward_model
from xrlhf.export.split import split_model

__all__ = [
    "export_adapter",
    "export_checkpoint",
    "merge_into_base",
    "save_adapter",
    "save_policy",
    "save_reward_model",
    "split_model",
]
