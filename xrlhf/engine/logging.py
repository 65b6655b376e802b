"""The log line, and one logger for the whole package."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

from mmengine.device import is_cuda_available, is_musa_available
from mmengine.logging.logger import MMFormatter
from mmengine.runner import LogProcessor

from xrlhf.errors import ConfigError
from xrlhf.registry import LOG_PROCESSORS

__all__ = ["StepLogProcessor", "check_log_level", "join_loggers", "log_traceback", "start_logging"]

_CURRENT = ("lr", "memory", "num_skipped", "num_stopped_early")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@LOG_PROCESSORS.register_module()
class StepLogProcessor(LogProcessor):
    """mmengine's log line, with every training value a mean over the steps since the last line.

    Validation values are of the whole set and shown as they are; where they are stored for curves, their names begin
    with ``val/``, so that they do not mix with training's. Counts are whole numbers.

    Args:
        window_size: Steps to average over; set it to the logger's interval.
    """

    def __init__(self, window_size: int = 10) -> None:
        super().__init__(window_size=window_size, by_epoch=False)

    def get_log_after_epoch(
        self, runner: Any, batch_idx: int, mode: str, with_non_scalar: bool = False
    ) -> tuple[dict[str, Any], str]:
        """The values of a validation by the names they are stored under, and the line that shows them."""
        values, line = super().get_log_after_epoch(runner, batch_idx, mode, with_non_scalar)
        return {f"{mode}/{name}": value for name, value in values.items()}, line

    def _collect_scalars(
        self, custom_cfg: list[dict], runner: Any, mode: str, reserve_prefix: bool = False
    ) -> OrderedDict[str, float]:
        tag: OrderedDict[str, float] = OrderedDict()
        for prefixed, buffer in runner.message_hub.log_scalars.items():
            if not prefixed.startswith(f"{mode}/"):
                continue
            name = prefixed[len(mode) + 1 :]
            averaged = name in ("time", "data_time") if mode != "train" else name not in _CURRENT
            value = float(buffer.mean(self.window_size) if averaged else buffer.current())
            tag[prefixed if reserve_prefix else name] = round(value) if _is_count(name) else value
        if "memory" in tag:
            tag.move_to_end("memory", last=False)
            if is_cuda_available() or is_musa_available():
                # mmengine writes this field itself there, with what _get_max_memory returns.
                del tag["memory"]
        return tag

    def _get_max_memory(self, runner: Any) -> int:
        # mmengine's own would measure another device than the run's, and reset its peak.
        return round(runner.message_hub.log_scalars["train/memory"].current())


def _is_count(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.startswith("num_") or last in ("memory", "tokens_per_second")


class _Worded(logging.Filter):
    """Puts the arguments into a message: mmengine's handlers show equal warnings once, and compare them bare."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = record.getMessage(), ()
        return True


class _EarlyHandler(logging.StreamHandler):
    """Prints to the terminal and remembers, for the log file that does not exist yet."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        super().emit(record)


def check_log_level(name: Any) -> None:
    """Refuse a recipe's ``log_level`` that is none.

    Raises:
        ConfigError: It is not one of logging's names.
    """
    if name is not None and name not in _LEVELS:
        raise ConfigError(f"log_level must be one of {', '.join(_LEVELS)}, got {name!r}")


def start_logging(rank: int) -> None:
    """Show what the package says before a run's own logger stands; see :func:`join_loggers`."""
    if not sys.warnoptions:
        # Deprecations inside libraries are for those who write against them, not for who runs a recipe.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    handler = _EarlyHandler()
    handler.setFormatter(MMFormatter(color=True, datefmt="%m/%d %H:%M:%S"))
    handler.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    _use([handler])


def join_loggers(run_logger: logging.Logger, rank_file: Path | None = None) -> None:
    """Let the package's own logger write where a run's logger writes, what it has said so far included.

    Args:
        run_logger: mmengine's logger of the run.
        rank_file: Where a process that has no log file keeps its warnings and errors; made when there are any.
    """
    if rank_file is not None:
        rank_file.parent.mkdir(parents=True, exist_ok=True)
        own = logging.FileHandler(rank_file, encoding="utf-8", delay=True)
        own.setFormatter(MMFormatter(color=False, datefmt="%Y/%m/%d %H:%M:%S"))
        own.setLevel(logging.WARNING)
        run_logger.addHandler(own)
    early = [handler for handler in logging.getLogger("xrlhf").handlers if isinstance(handler, _EarlyHandler)]
    for record in [record for handler in early for record in handler.records]:
        for file_handler in run_logger.handlers:
            if isinstance(file_handler, logging.FileHandler) and record.levelno >= file_handler.level:
                file_handler.handle(record)
    _use(list(run_logger.handlers))


def log_traceback(error: BaseException) -> None:
    """Keep the traceback of what ended a run in its log files; the terminal is not theirs."""
    package = logging.getLogger("xrlhf")
    record = package.makeRecord(
        package.name, logging.CRITICAL, __file__, 0, "".join(traceback.format_exception(error)).rstrip(), (), None
    )
    for handler in package.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)


def _use(handlers: list[logging.Handler]) -> None:
    package = logging.getLogger("xrlhf")
    package.handlers = handlers
    package.filters = [_Worded()]
    # The handlers hold the level the recipe asks for; a logger without one would fall back to warnings.
    package.setLevel(logging.DEBUG)
    package.propagate = False
