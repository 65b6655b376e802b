"""Hooks: what happens beside training."""

from xrlhf.engine.hooks.checkpoint import StepCheckpointHook
from xrlhf.engine.hooks.curves import CurvesHook

__all__ = ["CurvesHook", "StepCheckpointHook"]
