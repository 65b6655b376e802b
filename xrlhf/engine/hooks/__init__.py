"""Hooks: what happens beside training."""

from xrlhf.engine.hooks.checkpoint import StepCheckpointHook
from xrlhf.engine.hooks.curves import CurvesHook
from xrlhf.engine.hooks.logger import StepLoggerHook
from xrlhf.engine.hooks.samples import SampleHook
from xrlhf.engine.hooks.throughput import ThroughputHook
from xrlhf.engine.hooks.timer import StepTimerHook

__all__ = ["CurvesHook", "SampleHook", "StepCheckpointHook", "StepLoggerHook", "StepTimerHook", "ThroughputHook"]
