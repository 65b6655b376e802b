"""The log line, and one logger for the whole package."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mmengine.logging import HistoryBuffer, MMLogger

from xrlhf.engine.logging import StepLogProcessor, check_log_level, join_loggers, log_traceback, start_logging
from xrlhf.errors import ConfigError


def buffer(*values: float) -> HistoryBuffer:
    return HistoryBuffer(list(values), [1] * len(values))


def runner(**scalars: HistoryBuffer) -> Any:
    """As much of a runner as a log line needs; names are given with ``__`` for ``/``."""
    hub = SimpleNamespace(
        log_scalars={name.replace("__", "/"): values for name, values in scalars.items()},
        runtime_info={"eta": np.float64(65.0)},
        get_info=lambda name: 65.0,
    )
    return SimpleNamespace(
        message_hub=hub,
        iter=9,
        max_iters=20,
        _train_loop=object(),
        train_loop=SimpleNamespace(dataloader=[0] * 20),
        val_loop=SimpleNamespace(dataloader=[0] * 4),
    )


@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_training_line(has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with a GPU, where mmengine adds a memory field of its own.

    Over a window of 2: the loss is (1 + 3) / 2, tokens (10 + 21) / 2 = 15.5 rounded to even; lr is the last one's."""
    monkeypatch.setattr("mmengine.runner.log_processor.is_cuda_available", lambda: has_gpu)
    monkeypatch.setattr("xrlhf.engine.logging.is_cuda_available", lambda: has_gpu)
    values, line = StepLogProcessor(window_size=2).get_log_after_iter(
        runner(
            train__lr=buffer(1.0, 0.5),
            train__time=buffer(9.0, 1.0, 2.0),
            train__data_time=buffer(0.1, 0.2),
            train__loss=buffer(9.0, 1.0, 3.0),
            train__acc=buffer(0.25, 0.75),
            train__num_tokens=buffer(10.0, 21.0),
            train__tokens_per_second=buffer(100.4, 100.4),
            train__memory=buffer(10.0, 30.6),
            val__accuracy=buffer(0.1),
        ),
        9,
        "train",
    )
    assert line == (
        "Iter(train) [10/20]  lr: 5.0000e-01  eta: 0:01:05  time: 1.5000  data_time: 0.1500  memory: 31  loss: 2.0000  "
        "acc: 0.5000  num_tokens: 16  tokens_per_second: 100"
    )
    assert values == {
        "lr": 0.5,
        "time": 1.5,
        "data_time": pytest.approx(0.15),
        "memory": 31,
        "loss": 2.0,
        "acc": 0.5,
        "num_tokens": 16,
        "tokens_per_second": 100,
        "iter": 10,
    }


def test_a_validation_line() -> None:
    """Values of the last validation alone, stored apart from training's."""
    values, line = StepLogProcessor(window_size=10).get_log_after_epoch(
        runner(val__accuracy=buffer(0.1, 0.75), val__num_groups=buffer(3.0, 4.0), train__loss=buffer(1.0)), 4, "val"
    )
    assert line.split() == ["Iter(val)", "[4/4]", "accuracy:", "0.7500", "num_groups:", "4"]
    assert values == {"val/accuracy": 0.75, "val/num_groups": 4}


@pytest.mark.parametrize("level", [None, "DEBUG", "INFO", "ERROR"])
def test_levels(level: str | None) -> None:
    check_log_level(level)


@pytest.mark.parametrize("level", ["INFOO", "info", 10])
def test_wrong_levels(level: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^log_level must be one of DEBUG, INFO, .*, got {level!r}$"):
        check_log_level(level)


@pytest.fixture
def package(package_logger: None) -> logging.Logger:
    return logging.getLogger("xrlhf")


def run_logger(name: str, file: Path, level: str = "INFO") -> MMLogger:
    return MMLogger.get_instance(name, log_file=str(file), log_level=level)


def test_what_is_said_before_a_run_is_shown_and_goes_to_its_file(
    tmp_path: Path, package: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    start_logging(rank=0)
    package.info("reading %d rows", 3)
    package.debug("a detail")
    assert "reading 3 rows" in terminal.getvalue()
    join_loggers(run_logger("early", tmp_path / "run.log"))
    package.info("training")
    shown, written = terminal.getvalue(), (tmp_path / "run.log").read_text()
    for text in (shown, written):
        assert [text.count(said) for said in ("reading 3 rows", "training", "a detail")] == [1, 1, 0]
    # A second run in the same process does not hear of the first.
    join_loggers(run_logger("second", tmp_path / "second.log"))
    assert (tmp_path / "second.log").read_text() == ""


def test_other_processes_are_silent_but_for_errors(package: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    start_logging(rank=1)
    package.warning("not shown")
    package.error("shown")
    assert "not shown" not in terminal.getvalue()
    assert "shown" in terminal.getvalue()


def test_warnings_that_differ_are_all_shown(
    tmp_path: Path, package: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmengine's handlers drop a warning whose unformatted text was shown before."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    join_loggers(run_logger("warnings", tmp_path / "run.log"))
    for name in ("iter_2.pth", "iter_1.pth", "iter_1.pth"):
        package.warning("checkpoint %s is passed over", name)
    written = (tmp_path / "run.log").read_text()
    assert [written.count(f"checkpoint iter_{step}.pth is passed over") for step in (1, 2)] == [1, 1]


def test_a_process_without_a_log_file_keeps_its_errors(package_logger: None, tmp_path: Path) -> None:
    """The file is made when there is something to keep: a run has as many as processes that went wrong."""
    own = logging.Logger("of rank 1")
    shown = io.StringIO()
    own.addHandler(logging.StreamHandler(shown))
    file = tmp_path / "20260101_120000" / "rank_1.log"
    join_loggers(own, file)
    logging.getLogger("xrlhf").info("as usual")
    assert not file.exists()
    try:
        raise ValueError("what went wrong")
    except ValueError as error:
        log_traceback(error)
    for handler in own.handlers:
        handler.close()
    kept = file.read_text()
    assert "Traceback (most recent call last)" in kept
    assert kept.rstrip().endswith("ValueError: what went wrong")
    assert "as usual" not in kept
    assert "went wrong" not in shown.getvalue()
