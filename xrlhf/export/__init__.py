"""Exports: the Hugging Face directory is the only door between stages."""

from xrlhf.export.reward import export_checkpoint, save_reward_model

__all__ = ["export_checkpoint", "save_reward_model"]
