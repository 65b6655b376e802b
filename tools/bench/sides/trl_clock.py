"""How every trainer of TRL is set up and timed."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from transformers import TrainerCallback

__all__ = ["Clock", "training_arguments", "training_result"]


class Clock(TrainerCallback):
    """When every optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def training_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """What the config of any of its trainers is told: TRL's defaults, or no activation checkpointing."""
    return {
        "output_dir": job["scratch"],
        "per_device_train_batch_size": job["batch"],
        "gradient_accumulation_steps": job["groups_per_step"] // job["batch"],
        "max_steps": job["steps"],
        "learning_rate": job["lr"],
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "max_length": job["max_length"],
        "bf16": job["dtype"] == "bfloat16",
        "use_cpu": job["device"] == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 0,
        **({} if job["trl_defaults"] else {"gradient_checkpointing": False}),
    }


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
