"""When a line of the log is due."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import LoggerHook

from xrlhf.errors import ConfigError
from xrlhf.registry import HOOKS

__all__ = ["StepLoggerHook"]


@HOOKS.register_module()
class StepLoggerHook(LoggerHook):
    """mmengine's logger for runs that count optimizer steps: a line every ``interval`` steps and after the last one.

    Args:
        interval: Steps between two lines.

    Raises:
        ConfigError: ``interval`` is below 1.
    """

    def __init__(self, interval: int = 10) -> None:
        if interval < 1:
            raise ConfigError(f"the logger's interval must be at least 1 step, got {interval}")
        super().__init__(interval=interval, log_metric_by_epoch=False)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Print and store the values since the last line, where one is due."""
        step = batch_idx + 1
        if step % self.interval and step != runner.max_iters:
            return
        values, line = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
        runner.logger.info(line)
        runner.visualizer.add_scalars(values, step=step, file_path=self.json_log_path)
