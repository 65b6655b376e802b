"""Notes when every optimizer step ended, for a benchmark's recipe."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from mmengine.hooks import Hook

from xrlhf.registry import HOOKS

__all__ = ["ClockHook"]


@HOOKS.register_module()
class ClockHook(Hook):
    """When every optimizer step ended."""

    # Read after the run that owns the hook is over.
    ends: ClassVar[list[float]] = []
    losses: ClassVar[list[float]] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Note the time and the loss."""
        self.ends.append(time.perf_counter())
        self.losses.append(outputs["loss"])
