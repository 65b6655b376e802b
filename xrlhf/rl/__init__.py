"""Reinforcement learning from rewards: answers are drawn, rewarded, and learnt from."""

from __future__ import annotations

from xrlhf.rl.advantages import GAE, GroupRelative, ReturnsToGo
from xrlhf.rl.samples import PromptRow, RewardSource, Rollouts, Sample

__all__ = ["GAE", "GroupRelative", "PromptRow", "ReturnsToGo", "RewardSource", "Rollouts", "Sample"]
