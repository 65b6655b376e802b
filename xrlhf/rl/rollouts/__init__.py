"""Sources of answers: the policy in this process, or servers."""

from __future__ import annotations

from xrlhf.rl.rollouts.model import ModelRollouts, WritingModel, sampling_of
from xrlhf.rl.rollouts.vllm import VllmRollouts

__all__ = ["ModelRollouts", "VllmRollouts", "WritingModel", "sampling_of"]
