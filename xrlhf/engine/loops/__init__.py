"""Loops: what one run does, step by step."""

from xrlhf.engine.loops.train import GroupTrainLoop
from xrlhf.engine.loops.val import GroupValLoop, LossValLoop

__all__ = ["GroupTrainLoop", "GroupValLoop", "LossValLoop"]
