"""What every trainer of TRL is timed by."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from transformers import TrainerCallback

__all__ = ["Clock", "training_result"]


class Clock(TrainerCallback):
    """When every optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def training_result(trainer: Any, clock: Clock, started: float) -> dict[str, Any]:
    """What a side of a training benchmark reports.

    Args:
        trainer: After training.
        clock: Its callback.
        started: When the process began.
    """
    return {
        "losses": [float(row["loss"]) for row in trainer.state.log_history if "loss" in row],
        "step_seconds": [b - a for a, b in pairwise(clock.ends)],
        "first_step_seconds": clock.ends[0] - started,
    }
