"""Seconds per step, and the time left."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import IterTimerHook

from xrlhf.registry import HOOKS

__all__ = ["StepTimerHook"]


@HOOKS.register_module()
class StepTimerHook(IterTimerHook):
    """mmengine's timer for validations that run between two steps: they count neither as a step nor as waiting."""

    def after_val(self, runner: Any) -> None:
        """Start the clock of the next step anew."""
        self._before_epoch(runner, mode="train")
