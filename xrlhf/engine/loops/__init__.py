"""Loops: what one run does, step by step."""

from xrlhf.engine.loops.rl import RLTrainLoop
from xrlhf.engine.loops.train import GroupTrainLoop
from xrlhf.engine.loops.val import GroupValLoop, LossValLoop, RewardValLoop

__all__ = ["GroupTrainLoop", "GroupValLoop", "LossValLoop", "RLTrainLoop", "RewardValLoop"]
