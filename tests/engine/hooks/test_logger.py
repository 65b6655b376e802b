"""When a line of the log is due."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xrlhf.engine.hooks import StepLoggerHook
from xrlhf.errors import ConfigError


class Run:
    """Notes the lines and stored values of a run."""

    def __init__(self, max_steps: int) -> None:
        self.max_iters, self.timestamp, self.iter = max_steps, "now", 0
        self.lines: list[str] = []
        self.stored: list[tuple[int, str]] = []
        self.logger = SimpleNamespace(info=self.lines.append)
        self.log_processor = SimpleNamespace(get_log_after_iter=lambda run, index, mode: ({}, f"{mode} {index + 1}"))
        self.visualizer = SimpleNamespace(add_scalars=self.store)

    def store(self, values: dict[str, Any], step: int, file_path: str) -> None:
        self.stored.append((step, file_path))


@pytest.mark.parametrize(
    ("interval", "max_steps", "steps"),
    [(2, 6, [2, 4, 6]), (2, 5, [2, 4, 5]), (10, 3, [3]), (1, 2, [1, 2])],
)
def test_every_interval_and_after_the_last_step(interval: int, max_steps: int, steps: list[int]) -> None:
    run, hook = Run(max_steps), StepLoggerHook(interval)
    hook.before_run(run)
    for index in range(max_steps):
        hook.after_train_iter(run, index)
    assert run.lines == [f"train {step}" for step in steps]
    assert run.stored == [(step, "now.json") for step in steps]


def test_a_wrong_interval() -> None:
    with pytest.raises(ConfigError, match=r"^the logger's interval must be at least 1 step, got 0$"):
        StepLoggerHook(0)
