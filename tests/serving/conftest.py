"""A tiny exported reward model, its offline scores, and servers of it: in this process, and in one of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_models import byte_tokenizer, tiny_backbone

from xrlhf.devices import CpuDevice
from xrlhf.evaluation.scorer import Scorer
from xrlhf.export import save_reward_model
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer

MAX_LENGTH = 256


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported reward model of 256 positions."""
    out = tmp_path_factory.mktemp("serving") / "tiny_reward"
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="<|reward|>")
    model = RewardModel(tiny_backbone(vocab_size=260, max_position_embeddings=MAX_LENGTH), tokenizer=tokenizer)
    save_reward_model(model, tokenizer, out)
    return out


@pytest.fixture(scope="session")
def scorer(reward_folder: Path) -> Scorer:
    """The offline scorer."""
    return Scorer.from_pretrained(str(reward_folder), device=CpuDevice())


@pytest.fixture
def serving(scorer: Scorer, reward_folder: Path) -> Iterator[Callable[..., Any]]:
    """Makes an application in this process, with the limits and the key that are asked for; returns a test client."""
    from starlette.testclient import TestClient

    from xrlhf.serving.app import build_app
    from xrlhf.serving.metrics import Metrics
    from xrlhf.serving.model import ServedModel
    from xrlhf.serving.service import RewardService
    from xrlhf.serving.settings import Limits, ModelSettings

    services = []

    def make(*, api_key: str | None = None, loaded: bool = True, model: Any = None, **limits: Any) -> Any:
        service = RewardService(Limits(**limits), Metrics())
        if loaded:
            service.attach(model or ServedModel(scorer, ModelSettings(path=str(reward_folder))))
        services.append(service)
        client = TestClient(build_app(service, api_key=api_key), raise_server_exceptions=True)
        client.service = service  # type: ignore[attr-defined]
        return client

    yield make
    for service in services:
        service.close(timeout=10)


class Process:
    """``xrlhf serve`` in a process of its own.

    Args:
        process: The process.
        lines: What it has printed so far.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        """The first group of ``pattern`` in what it prints."""
        latest = time.monotonic() + seconds
        while time.monotonic() < latest:
            if found := re.search(pattern, self.output):
                return found[1] if found.re.groups else found[0]
            if self.process.poll() is not None:
                self._reader.join(5)
                if found := re.search(pattern, self.output):
                    return found[1] if found.re.groups else found[0]
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.output}")
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} within {seconds} s:\n{self.output}")

    @property
    def url(self) -> str:
        return self.wait_for(r"ready: \S+ at (http://\S+)")

    def end(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal and return the status it ends with."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        status = self.process.wait(seconds)
        self._reader.join(5)
        return status


@pytest.fixture
def serve_process(reward_folder: Path, command_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable]:
    """Starts ``xrlhf serve`` of the tiny model, at any free port unless the arguments name one."""
    started: list[Process] = []

    def start(*arguments: str, model: Path = reward_folder, environment: dict[str, str] | None = None) -> Process:
        port = [] if "--port" in arguments else ["--port", "0"]
        process = subprocess.Popen(
            [sys.executable, "-m", "xrlhf.cli.main", "serve", str(model), "--device", "cpu", *port, *arguments],
            cwd=tmp_path,
            env={**command_environment, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(Process(process))
        return started[-1]

    yield start
    for item in started:
        if item.process.poll() is None:
            item.process.kill()
            item.process.wait()
