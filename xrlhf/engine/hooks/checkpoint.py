"""When checkpoints are taken, and which are kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from xrlhf.engine.checkpoint import find_checkpoints, remove_checkpoint
from xrlhf.errors import ConfigError
from xrlhf.registry import HOOKS

__all__ = ["StepCheckpointHook"]

logger = logging.getLogger("xrlhf")


@HOOKS.register_module()
class StepCheckpointHook(Hook):
    """Saves every ``interval`` optimizer steps, after the last one, and when the run is asked to stop.

    Old checkpoints are deleted only when the new one is whole, and only the newest ``max_keep`` by step stay.

    Args:
        interval: Steps between checkpoints.
        max_keep: Checkpoints to keep, at least 1; None keeps all.
        save_last: Save after the last step, whether or not the interval falls on it.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int = 500, max_keep: int | None = 2, save_last: bool = True) -> None:
        if interval < 1 or (max_keep is not None and max_keep < 1):
            raise ConfigError(f"checkpoint interval and max_keep must be at least 1, got {interval} and {max_keep}")
        self.interval = interval
        self.max_keep = max_keep
        self.save_last = save_last

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        step = runner.iter + 1
        due = step % self.interval == 0 or (self.save_last and step == runner.max_iters)
        if not due and not runner.train_loop.is_stopping:
            return
        path = Path(runner.work_dir) / f"iter_{step}.pth"
        runner.save_training_state(path, step)
        if runner.rank == 0 and self.max_keep is not None:
            kept = [item for item in find_checkpoints(Path(runner.work_dir)) if item.step <= step]
            for old in kept[self.max_keep :]:
                remove_checkpoint(old.path)
