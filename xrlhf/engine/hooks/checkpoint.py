"""When checkpoints are taken, how, and which are kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from xrlhf.engine.checkpoint import checkpoint_name, find_checkpoints, remove_checkpoint
from xrlhf.errors import ConfigError
from xrlhf.registry import HOOKS

__all__ = ["StepCheckpointHook"]

logger = logging.getLogger("xrlhf")


@HOOKS.register_module()
class StepCheckpointHook(Hook):
    """Saves every ``interval`` optimizer steps, after the last one, and when the run is asked to stop.

    Old checkpoints are deleted only when the new one is whole, and only the newest ``max_keep`` by step stay. One is
    written at a time: where the next is due before, training waits, and so it does at its end.

    Args:
        interval: Steps between checkpoints.
        max_keep: Checkpoints to keep, at least 1; None keeps all.
        save_last: Save after the last step, whether or not the interval falls on it.
        overlap: Go on training while a checkpoint is written. A copy of what is saved is held in the memory of the
            host meanwhile; an error of the disk stops the run after the step in which it came to light.
        sharded: Have every process write what it holds into a folder ``iter_N``, in place of gathering everything in
            the memory of the first one for ``iter_N.pth``: for models too large for that. All processes have to see
            the same work directory.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int = 500,
        max_keep: int | None = 2,
        save_last: bool = True,
        overlap: bool = True,
        sharded: bool = False,
    ) -> None:
        if interval < 1 or (max_keep is not None and max_keep < 1):
            raise ConfigError(f"checkpoint interval and max_keep must be at least 1, got {interval} and {max_keep}")
        self.interval = interval
        self.max_keep = max_keep
        self.save_last = save_last
        self.overlap = overlap
        self.sharded = sharded

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        step = runner.iter + 1
        due = step % self.interval == 0 or (self.save_last and step == runner.max_iters)
        due = due or runner.train_loop.is_stopping
        self._finish(runner, wait=due)
        if not due:
            return
        path = Path(runner.work_dir) / checkpoint_name(step, sharded=self.sharded)
        runner.save_training_state(path, step)
        if not self.overlap:
            self._finish(runner, wait=True)

    def after_train(self, runner: Any) -> None:
        self._finish(runner, wait=True)

    def _finish(self, runner: Any, *, wait: bool) -> None:
        """See what is being written to its end, and delete what is older than what is to be kept."""
        saved = runner.strategy.finish_saving(wait=wait)
        if saved is None or runner.rank != 0 or self.max_keep is None:
            return
        found = find_checkpoints(Path(runner.work_dir))
        step = next((item.step for item in found if item.path == saved), 0)
        for old in [item for item in found if item.step <= step][self.max_keep :]:
            remove_checkpoint(old.path)
