"""What a run would take in memory and time, from shapes alone: before weights are loaded and devices are rented."""

from xrlhf.engine.plan.hardware import Hardware, hardware_for
from xrlhf.engine.plan.live_bytes import LiveBytes, Peak
from xrlhf.engine.plan.report import (
    Planned,
    own_strategy,
    plan_by_strategy,
    plan_lines,
    plan_model,
    plan_of,
    rollout_lines,
    step_seconds,
)
from xrlhf.engine.plan.rollout import DRAWING, REWARDING, RolloutNeeds, rollout_needs, with_rollout
from xrlhf.engine.plan.step import Sizes, StepNeeds, sizes_of, step_needs
from xrlhf.engine.plan.strategies import DevicePlan, Moment, plan_strategy
from xrlhf.engine.plan.workload import (
    AssumedPrompts,
    RolloutShape,
    Workload,
    assumed_workload,
    workload_of,
    workload_of_rollouts,
)

__all__ = [
    "DRAWING",
    "REWARDING",
    "AssumedPrompts",
    "DevicePlan",
    "Hardware",
    "LiveBytes",
    "Moment",
    "Peak",
    "Planned",
    "RolloutNeeds",
    "RolloutShape",
    "Sizes",
    "StepNeeds",
    "Workload",
    "assumed_workload",
    "hardware_for",
    "own_strategy",
    "plan_by_strategy",
    "plan_lines",
    "plan_model",
    "plan_of",
    "plan_strategy",
    "rollout_lines",
    "rollout_needs",
    "sizes_of",
    "step_needs",
    "step_seconds",
    "with_rollout",
    "workload_of",
    "workload_of_rollouts",
]
