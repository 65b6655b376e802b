"""When checkpoints are taken, and which are kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xrlhf.engine.checkpoint import commit_shards, find_checkpoints, prepare_shards, save_checkpoint, save_shard
from xrlhf.engine.hooks import StepCheckpointHook
from xrlhf.errors import CheckpointError, ConfigError


class Run:
    """A run of ``max_steps`` whose hook saves real checkpoints, which take ``steps_to_write`` steps to be whole."""

    def __init__(self, work_dir: Path, max_steps: int, rank: int = 0, steps_to_write: int = 0) -> None:
        self.work_dir, self.max_iters, self.rank, self.iter = str(work_dir), max_steps, rank, 0
        self.steps_to_write = steps_to_write
        self.strategy = self
        self.saved: list[int] = []
        self.train_loop = SimpleNamespace(is_stopping=False)
        self.names: list[str] = []
        self.waits: list[int] = []
        self.pending: tuple[Path, int] | None = None

    def save_training_state(self, path: Path, step: int) -> None:
        assert self.pending is None
        self.saved.append(step)
        self.names.append(path.name)
        self.pending = (path, step)

    def finish_saving(self, *, wait: bool) -> Path | None:
        if self.pending is None:
            return None
        path, step = self.pending
        is_written = self.iter + 1 >= step + self.steps_to_write
        if not (wait or is_written):
            return None
        if not is_written:
            self.waits.append(self.iter + 1)
        self.pending = None
        if self.rank == 0:
            state = {"state_dict": {"w": torch.ones(1)}, "meta": {"step": step}}
            if path.suffix == ".pth":
                save_checkpoint(state, path)
            else:
                prepare_shards(path)
                commit_shards(path, save_shard({}, path, rank=0, world_size=1, common=state))
        return path

    def go(self, hook: StepCheckpointHook, start: int = 0) -> list[int]:
        """Steps of the checkpoints that are there in the end."""
        for step in range(start, self.max_iters):
            self.iter = step
            hook.after_train_iter(self, batch_idx=step)
        hook.after_train(self)
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

    def fail(*, wait: bool) -> None:
        if run.pending is not None:
            assert [item.step for item in find_checkpoints(tmp_path)] == [2]
            raise CheckpointError("the disk is full")

    run.finish_saving = fail  # type: ignore[method-assign, assignment]
    run.max_iters = 3
    with pytest.raises(CheckpointError):
        run.go(hook, start=2)
    assert [item.step for item in find_checkpoints(tmp_path)] == [2]


def test_writing_beside_training(tmp_path: Path) -> None:
    """Steps 3, 6, 9 are due and take two steps to be written; the last one, 10, waits for 9, and the end for it."""
    run = Run(tmp_path, 10, steps_to_write=2)
    seen: list[tuple[int, list[int]]] = []
    after_step = run.finish_saving

    def watch(*, wait: bool) -> Path | None:
        found = after_step(wait=wait)
        seen.append((run.iter + 1, sorted(item.step for item in find_checkpoints(tmp_path))))
        return found

    run.finish_saving = watch  # type: ignore[method-assign]
    assert run.go(StepCheckpointHook(interval=3, max_keep=1)) == [10]
    assert run.waits == [10, 10]
    # Until the new one is whole, the old one stays.
    assert seen[3:6] == [(4, []), (5, [3]), (6, [3])]
    assert seen[6:9] == [(7, [3]), (8, [3, 6]), (9, [6])]


def test_training_waits_where_it_is_told_to(tmp_path: Path) -> None:
    run = Run(tmp_path, 6, steps_to_write=2)
    assert run.go(StepCheckpointHook(interval=3, overlap=False)) == [3, 6]
    assert run.waits == [3, 6]


def test_saved_by_all_processes(tmp_path: Path) -> None:
    """Folders are kept and deleted as files are, and beside them."""
    assert Run(tmp_path, 4).go(StepCheckpointHook(interval=2)) == [2, 4]
    run = Run(tmp_path, 8)
    assert run.go(StepCheckpointHook(interval=2, sharded=True), start=4) == [6, 8]
    assert run.names == ["iter_6", "iter_8"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_6", "iter_8", "last_checkpoint"]


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
    strategy = SimpleNamespace(finish_saving=lambda wait: None)
    loop = SimpleNamespace(is_stopping=False)
    runner = SimpleNamespace(iter=0, max_iters=10, work_dir=None, rank=0, strategy=strategy, train_loop=loop)
    StepCheckpointHook(interval=5).after_train_iter(runner, batch_idx=0)
