"""Runs of two processes, whatever starts them, at a pace at which a test can step in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xrlhf.engine.checkpoint import find_checkpoints

__all__ = ["EXTRA", "MODULES", "NUM_STEPS", "XRLHF", "PairRun", "Started", "wait_until"]

XRLHF = [sys.executable, "-m", "xrlhf.cli.main"]

NUM_STEPS = 40

# Lies beside the recipes. Every process says its id, so that a test can end it, and takes 0.1 seconds a step.
MODULES = {
    "pace.py": '''
import os
import time
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from xrlhf.losses import RankingLoss


@HOOKS.register_module()
class Pace(Hook):
    def before_train(self, runner):
        (Path(runner.work_dir) / f"process_{runner.rank}").write_text(str(os.getpid()))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        time.sleep(0.1)


class HungryLoss(RankingLoss):
    """Asks for a pebibyte in the second process's fourth micro-batch."""

    calls = 0

    def forward(self, scores, mask, ratings):
        self.calls += 1
        if os.environ["RANK"] == "1" and self.calls == 4:
            torch.empty(2**50, dtype=torch.uint8)
        return super().forward(scores, mask, ratings)
'''
}

EXTRA = f"""
from pace import Pace

custom_hooks = [dict(type=Pace)]
train_cfg["max_steps"] = {NUM_STEPS}
default_hooks = dict(checkpoint=dict(interval=1, max_keep=3), logger=dict(interval=5), curves=None, throughput=None)
"""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"in {seconds:g} seconds {what} did not come"
        time.sleep(0.01)


@dataclass
class Started:
    """A command at work."""

    process: subprocess.Popen[str]
    output: Path

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def end(self, seconds: float = 120.0) -> int:
        """Its status, once it has ended."""
        try:
            return self.process.wait(timeout=seconds)
        finally:
            self.process.kill()


@dataclass(frozen=True)
class PairRun:
    """A run's recipe, its work directory, and the environment its commands are started in."""

    recipe: Path
    work_dir: Path
    environment: Mapping[str, str]

    def arguments(self, *more: str) -> list[str]:
        return ["train", str(self.recipe), "--work-dir", str(self.work_dir), "--resume", "auto", *more]

    def start(self, command: Sequence[str], name: str, **environment: str) -> Started:
        """Start a command whose output goes to a file called ``name`` beside the recipe."""
        output = self.recipe.with_name(name)
        with output.open("w") as file:
            process = subprocess.Popen(
                list(command),
                cwd=self.recipe.parent,
                env={**self.environment, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return Started(process, output)

    def pair(self, *more: str, name: str = "pair.log", **environment: str) -> Started:
        """The run as two processes of this machine."""
        return self.start([*XRLHF, *self.arguments(*more)], name, NPROC_PER_NODE="2", **environment)

    def newest_step(self) -> int:
        return max((item.step for item in find_checkpoints(self.work_dir)), default=0)

    def wait_for_step(self, step: int) -> None:
        wait_until(lambda: self.newest_step() >= step, f"step {step} of {self.work_dir}")

    def send(self, rank: int, number: signal.Signals) -> None:
        """A signal to the process of a rank."""
        os.kill(int((self.work_dir / f"process_{rank}").read_text()), number)
