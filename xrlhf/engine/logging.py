"""The log line, and one logger for the whole package."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

from mmengine.runner import LogProcessor

from xrlhf.registry import LOG_PROCESSORS

__all__ = ["StepLogProcessor", "join_loggers"]

_CURRENT = ("lr", "memory")


@LOG_PROCESSORS.register_module()
class StepLogProcessor(LogProcessor):
    """mmengine's log line, with every training value a mean over the steps since the last line.

    Validation values are of the whole set and shown as they are.

    Args:
        window_size: Steps to average over; set it to the logger's interval.
    """

    def __init__(self, window_size: int = 10) -> None:
        super().__init__(window_size=window_size, by_epoch=False)

    def _collect_scalars(
        self, custom_cfg: list[dict], runner: Any, mode: str, reserve_prefix: bool = False
    ) -> OrderedDict[str, float]:
        tag: OrderedDict[str, float] = OrderedDict()
        for prefixed, buffer in runner.message_hub.log_scalars.items():
            if not prefixed.startswith(f"{mode}/"):
                continue
            name = prefixed[len(mode) + 1 :]
            averaged = name in ("time", "data_time") if mode != "train" else name not in _CURRENT
            value = buffer.mean(self.window_size) if averaged else buffer.current()
            tag[prefixed if reserve_prefix else name] = int(value) if name == "memory" else float(value)
        if "memory" in tag:
            tag.move_to_end("memory", last=False)
        return tag


def join_loggers(run_logger: logging.Logger) -> None:
    """Let the package's own logger write where a run's logger writes: terminal and file."""
    package = logging.getLogger("xrlhf")
    package.handlers = list(run_logger.handlers)
    # The handlers hold the level the recipe asks for; a logger without one would fall back to warnings.
    package.setLevel(logging.DEBUG)
    package.propagate = False
