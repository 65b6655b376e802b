"""When checkpoints are taken, and which are kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xrlhf.engine.checkpoint import find_checkpoints, save_checkpoint
from xrlhf.engine.hooks import StepCheckpointHook
from xrlhf.errors import CheckpointError, ConfigError


class Run:
    """A run of ``max_steps`` whose hook saves real checkpoints."""

    def __init__(self, work_dir: Path, max_steps: int, rank: int = 0) -> None:
        self.work_dir, self.max_iters, self.rank, self.iter = str(work_dir), max_steps, rank, 0
        self.saved: list[int] = []
        self.train_loop = SimpleNamespace(is_stopping=False)

    def save_training_state(self, path: Path, step: int) -> None:
        self.saved.append(step)
        if self.rank == 0:
            save_checkpoint({"state_dict": {"w": torch.ones(1)}, "meta": {"step": step}}, path)

    def go(self, hook: StepCheckpointHook, start: int = 0) -> list[int]:
        """Steps of the checkpoints that are there in the end."""
        for step in range(start, self.max_iters):
            self.iter = step
            hook.after_train_iter(self, batch_idx=step)
        return sorted(item.step for item in find_checkpoints(Path(self.work_dir)))


@pytest.mark.parametrize(
    ("options", "saved", "kept"),
    [
        ({"interval": 3}, [3, 6, 9, 10], [9, 10]),
        ({"interval": 3, "max_keep": None}, [3, 6, 9, 10], [3, 6, 9, 10]),
        ({"interval": 3, "max_keep": 1}, [3, 6, 9, 10], [10]),
        ({"interval": 3, "save_last": False}, [3, 6, 9], [6, 9]),
        ({"interval": 5}, [5, 10], [5, 10]),
        ({"interval": 500}, [10], [10]),
    ],
)
def test_what_is_saved_and_what_is_kept(
    tmp_path: Path, options: dict[str, Any], saved: list[int], kept: list[int]
) -> None:
    run = Run(tmp_path, 10)
    assert run.go(StepCheckpointHook(**options)) == kept
    assert run.saved == saved
    assert {path.name for path in tmp_path.glob("*.json")} == {f"iter_{step}.pth.json" for step in kept}
    assert (tmp_path / "last_checkpoint").read_text() == f"iter_{saved[-1]}.pth"


def test_old_ones_go_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    hook, run = StepCheckpointHook(interval=1, max_keep=1), Run(tmp_path, 2)
    run.go(hook)

    def fail(path: Path, step: int) -> None:
        assert [item.step for item in find_checkpoints(tmp_path)] == [2]
        raise CheckpointError("the disk is full")

    run.save_training_state = fail  # type: ignore[method-assign]
    run.max_iters = 3
    with pytest.raises(CheckpointError):
        run.go(hook, start=2)
    assert [item.step for item in find_checkpoints(tmp_path)] == [2]


def test_checkpoints_of_later_steps_stay(tmp_path: Path) -> None:
    """After going on from step 2 of a run that had come to 8, what is newer than the new one is not ours to delete."""
    hook = StepCheckpointHook(interval=2, max_keep=2)
    assert Run(tmp_path, 8).go(hook) == [6, 8]
    assert Run(tmp_path, 4).go(hook, start=2) == [4, 6, 8]


def test_other_processes_take_part_in_saving_but_delete_nothing(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (tmp_path / f"iter_{step}.pth").touch()
    run = Run(tmp_path, 4, rank=1)
    assert run.go(StepCheckpointHook(interval=1, max_keep=1)) == [1, 2, 3]
    assert run.saved == [1, 2, 3, 4]


def test_it_comes_after_the_schedules() -> None:
    """A checkpoint holds the schedules' state after the step: their hook's priority is LOW."""
    assert StepCheckpointHook.priority == "VERY_LOW"


@pytest.mark.parametrize("options", [{"interval": 0}, {"interval": -5}, {"max_keep": 0}])
def test_wrong_options(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"^checkpoint interval and max_keep must be at least 1, got -?\d+ and \d+$"):
        StepCheckpointHook(**options)


def test_a_run_that_is_stopping_saves(tmp_path: Path) -> None:
    run = Run(tmp_path, max_steps=10)
    run.train_loop.is_stopping = True
    run.iter = 2
    StepCheckpointHook(interval=5).after_train_iter(run, batch_idx=2)
    assert run.saved == [3]


def test_a_runner_is_all_it_needs(tmp_path: Path) -> None:
    """Nothing is taken where nothing is due, not even the folder's listing."""
    runner = SimpleNamespace(iter=0, max_iters=10, work_dir=None, rank=0, train_loop=SimpleNamespace(is_stopping=False))
    StepCheckpointHook(interval=5).after_train_iter(runner, batch_idx=0)
