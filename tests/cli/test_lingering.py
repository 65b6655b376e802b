"""A process that gives way to another keeps the status of its own error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from xrlhf.cli import lingering


def test_ended_while_it_waits(command_environment: dict[str, str]) -> None:
    """As srun ends the other tasks. It reports the largest status: 128 + SIGTERM would hide the cause's."""
    code = "import os, signal; from xrlhf.cli.lingering import when_ended; when_ended(2); os.kill(os.getpid(), 15)"
    process = subprocess.run([sys.executable, "-c", code], env=command_environment, timeout=60, check=False)
    assert process.returncode == 2


def test_nobody_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    ended: list[Callable[..., None]] = []
    monkeypatch.setattr(lingering.time, "sleep", waited.append)
    monkeypatch.setattr(lingering.signal, "signal", lambda number, handler: ended.append(handler))
    lingering.linger(1)
    assert waited == [lingering._SECONDS]
    assert len(ended) == 1
