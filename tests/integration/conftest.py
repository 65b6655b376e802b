"""Runs that several tests look at."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

# Tests import finished_run and tiny_models by their names.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from finished_run import FinishedRun
from process_pair import EXTRA, MODULES, NUM_STEPS, PairRun

from xrlhf.engine.checkpoint import load_checkpoint


@pytest.fixture(scope="session")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_recipe_in: Callable[..., Path],
    xrlhf_in: Callable[..., subprocess.CompletedProcess[str]],
) -> FinishedRun:
    """The tiny recipe from the first step to the last, as a user runs it, with a secret in the recipe."""
    folder = tmp_path_factory.mktemp("unbroken")
    recipe = tiny_recipe_in(folder, extra='hub_token = "hf_0123456789abcdef"')
    result = xrlhf_in(folder, "train", recipe)
    assert result.returncode == 0, result.stdout + result.stderr
    return FinishedRun(recipe, folder / "tiny", result)


@pytest.fixture
def stopped_at() -> Callable[..., Path]:
    """Copies a run as it was after one of its checkpoints, as if it had been stopped there."""

    def copy(run: Path, step: int, target: Path) -> Path:
        target.mkdir(parents=True)
        for name in (f"iter_{step}.pth", f"iter_{step}.pth.json"):
            shutil.copy(run / name, target / name)
        (target / "last_checkpoint").write_text(f"iter_{step}.pth")
        return target

    return copy


def equal(one: Any, other: Any) -> bool:
    """Whether two states are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@pytest.fixture(scope="session")
def assert_same_end() -> Callable[[Path, Path], None]:
    """Weights, optimizer, schedules and step of two checkpoints are equal to the last bit."""

    def check(one: Path, other: Path) -> None:
        first, second = load_checkpoint(one), load_checkpoint(other)
        for part in ("state_dict", "optimizer", "param_schedulers"):
            assert equal(first[part], second[part]), part
        assert first["meta"]["step"] == second["meta"]["step"]

    return check


@pytest.fixture(scope="session")
def largest_difference() -> Callable[[Path, Path], float]:
    """Between the weights of two checkpoints."""

    def measure(one: Path, other: Path) -> float:
        first, second = load_checkpoint(one)["state_dict"], load_checkpoint(other)["state_dict"]
        return max(float((first[name] - second[name]).abs().max()) for name in first)

    return measure


@pytest.fixture(scope="session")
def pair_run_in(tiny_recipe_in: Callable[..., Path], command_environment: dict[str, str]) -> Callable[..., PairRun]:
    """Writes the recipe of a run of two processes to a folder; the run goes to ``FOLDER/NAME``."""

    def write(folder: Path, name: str) -> PairRun:
        for file, text in MODULES.items():
            (folder / file).write_text(text)
        recipe = tiny_recipe_in(folder, "pair", validate=False, extra=EXTRA)
        environment = {
            **command_environment,
            "PYTHONPATH": f"{folder}{os.pathsep}{command_environment['PYTHONPATH']}",
        }
        return PairRun(recipe, folder / name, environment)

    return write


@pytest.fixture
def pair_run(tmp_path: Path, pair_run_in: Callable[..., PairRun]) -> Callable[[str], PairRun]:
    """As ``pair_run_in``, in ``tmp_path``."""
    return partial(pair_run_in, tmp_path)


@pytest.fixture(scope="session")
def unbroken_pair(tmp_path_factory: pytest.TempPathFactory, pair_run_in: Callable[..., PairRun]) -> Path:
    """The work directory of a run of two processes that nobody stopped; one for all workers of this test session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "unbroken_pair"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "run" / f"iter_{NUM_STEPS}.pth").exists():
            started = pair_run_in(folder, "run").pair()
            assert started.end() == 0, started.said()
    return folder / "run"
