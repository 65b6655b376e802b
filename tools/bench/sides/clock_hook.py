"""Notes when training began and every optimizer step ended, for a benchmark's recipe."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from mmengine.hooks import Hook

from xrlhf.registry import HOOKS

__all__ = ["ClockHook"]


@HOOKS.register_module()
class ClockHook(Hook):
    """When training began and every optimizer step ended, and what was logged of it."""

    # Read after the run that owns the hook is over.
    began: ClassVar[float] = 0.0
    ends: ClassVar[list[float]] = []
    steps: ClassVar[list[dict[str, float]]] = []

    def before_train(self, runner: Any) -> None:
        """Note the time."""
        ClockHook.began = time.perf_counter()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Note the time and what is logged."""
        self.ends.append(time.perf_counter())
        self.steps.append(dict(outputs))
