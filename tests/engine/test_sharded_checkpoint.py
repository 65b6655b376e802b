"""Checkpoints to which every process writes its part: whole or absent, verified, and read by one process."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from xrlhf.engine import checkpoint
from xrlhf.engine.checkpoint import (
    CheckpointFile,
    abandon_shards,
    commit_shards,
    find_checkpoints,
    is_sharded,
    load_checkpoint,
    newest_valid,
    prepare_shards,
    refuse_damaged,
    remove_checkpoint,
    remove_leftovers,
    save_checkpoint,
    save_shard,
    verify,
)
from xrlhf.engine.shares import even_share
from xrlhf.errors import CheckpointError

WEIGHTS = {"a": torch.arange(12.0).view(3, 4), "b": torch.arange(5, dtype=torch.bfloat16)}
MOMENTS = {0: torch.arange(12.0).view(3, 4) + 100, 1: torch.arange(5.0) + 100}
FILES = ["common.pth", "manifest.json", "shard_00000_of_00002.pth", "shard_00001_of_00002.pth"]


def write_shards(path: Path, step: int = 1, world_size: int = 2, optimizer: bool = True) -> list[Any]:
    """What all processes write, before anybody says that it counts."""
    prepare_shards(path)
    common = {"meta": {"step": step, "format": 1}}
    if optimizer:
        plain = {index: {"step": torch.tensor(float(step))} for index in MOMENTS}
        common["optimizer"] = {"state": plain, "param_groups": [{"lr": 0.5, "params": [0, 1]}]}  # type: ignore[dict-item]
    records = []
    for rank in range(world_size):
        shard: dict[str, Any] = {
            "state_dict": {name: even_share(value, rank, world_size).copied() for name, value in WEIGHTS.items()}
        }
        if optimizer:
            shard["optimizer"] = {
                index: {"exp_avg": even_share(value, rank, world_size).copied()} for index, value in MOMENTS.items()
            }
        records += save_shard(shard, path, rank=rank, world_size=world_size, common=common if rank == 0 else None)
    return records


def save(folder: Path, *steps: int, **options: Any) -> list[Path]:
    paths = [folder / f"iter_{step}" for step in steps]
    for step, path in zip(steps, paths, strict=True):
        commit_shards(path, write_shards(path, step, **options))
    return paths


def save_file(folder: Path, step: int) -> Path:
    path = folder / f"iter_{step}.pth"
    save_checkpoint({"state_dict": WEIGHTS, "meta": {"step": step, "format": 1}}, path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("xrlhf"), "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_all_have_saved_one_process_loads(tmp_path: Path, world_size: int) -> None:
    (path,) = save(tmp_path, 7, world_size=world_size)
    state = load_checkpoint(path)
    assert set(state) == {"state_dict", "optimizer", "meta"}
    assert list(state["state_dict"]) == list(WEIGHTS)
    for name, value in WEIGHTS.items():
        assert torch.equal(state["state_dict"][name], value)
        assert state["state_dict"][name].dtype is value.dtype
    assert list(state["optimizer"]["state"]) == [0, 1]
    for index, value in MOMENTS.items():
        of_parameter = state["optimizer"]["state"][index]
        assert set(of_parameter) == {"exp_avg", "step"}
        assert torch.equal(of_parameter["exp_avg"], value)
        assert of_parameter["step"].item() == 7.0
    assert state["optimizer"]["param_groups"] == [{"lr": 0.5, "params": [0, 1]}]
    assert state["meta"]["step"] == 7


def test_what_lies_on_the_disk(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 3)
    assert names(tmp_path) == ["iter_3", "last_checkpoint"]
    assert names(path) == FILES
    assert (tmp_path / "last_checkpoint").read_text() == "iter_3"
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert sorted(manifest["files"]) == [name for name in FILES if name != "manifest.json"]
    for name, about in manifest["files"].items():
        digest = subprocess.run(["sha256sum", path / name], capture_output=True, text=True, check=True).stdout.split()
        assert about == {"size": (path / name).stat().st_size, "sha256": digest[0]}
        assert torch.serialization.get_unsafe_globals_in_checkpoint(path / name) == []


def test_before_it_is_committed_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "iter_2"
    records = write_shards(path)
    assert names(tmp_path) == ["iter_2.tmp"]
    assert find_checkpoints(tmp_path) == []
    commit_shards(path, records)
    assert find_checkpoints(tmp_path) == [CheckpointFile(path, 1 + 1)]
    # What a save that was cut off has left is not mixed with the next one's.
    (tmp_path / "iter_4.tmp").mkdir()
    (tmp_path / "iter_4.tmp" / "shard_00008_of_00009.pth").touch()
    save(tmp_path, 4)
    assert names(tmp_path / "iter_4") == FILES


def test_weights_alone(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1, optimizer=False)
    assert set(load_checkpoint(path)) == {"state_dict", "meta"}


# ---------------------------------------------------------------- failures while saving


def test_a_file_of_another_process_that_is_not_there(tmp_path: Path) -> None:
    """As on machines that share no files: each sees its own only."""
    path = tmp_path / "iter_1"
    records = write_shards(path)
    (tmp_path / "iter_1.tmp" / FILES[-1]).unlink()
    with pytest.raises(CheckpointError) as error:
        commit_shards(path, records)
    assert str(error.value) == (
        f"checkpoint {path} is not whole: shard_00001_of_00002.pth, written by another process, cannot be seen by the "
        "first one. Put work_dir on a file system that all machines share, or leave sharded out"
    )
    assert not path.exists()


def test_an_error_at_the_rename_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (earlier,) = save(tmp_path, 1)
    path = tmp_path / "iter_2"
    records = write_shards(path)

    def fail(*args: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(checkpoint.os, "replace", fail)
    with pytest.raises(CheckpointError, match=r"iter_2 could not be written \(\[Errno 1\] Operation not permit"):
        commit_shards(path, records)
    abandon_shards(path)
    assert names(tmp_path) == ["iter_1", "last_checkpoint"]
    assert verify(earlier) is None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (prepare_shards, lambda path: save_shard({}, path, rank=0, world_size=1)):
        with pytest.raises(CheckpointError, match=r"file/iter_1 could not be written \("):
            write(tmp_path / "file" / "iter_1")


def test_values_that_are_not_plain_are_refused(tmp_path: Path) -> None:
    prepare_shards(tmp_path / "iter_1")
    with pytest.raises(TypeError, match=r"^common\.pth\['meta'\]\['path'\] is a pathlib\.\w*PosixPath: only tensors"):
        save_shard({}, tmp_path / "iter_1", rank=0, world_size=1, common={"meta": {"path": Path("x")}})


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from xrlhf.engine.checkpoint import prepare_shards, save_shard
from xrlhf.errors import CheckpointError

path = Path(sys.argv[1]) / "iter_2"
prepare_shards(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    save_shard({"state_dict": {"w": torch.ones(int(sys.argv[3]))}}, path, rank=1, world_size=2)
except CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "elements"), [(1_000_000, 1_000_000), (3_000, 1_000)])
def test_a_full_disk(tmp_path: Path, limit: int, elements: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(limit), str(elements)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.stdout.startswith(
        f"checkpoint {tmp_path / 'iter_2'} could not be written ([Errno 27] File too large); "
    )
    assert find_checkpoints(tmp_path) == []
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


# ---------------------------------------------------------------- damage


def truncate(path: Path) -> None:
    file = path / FILES[-1]
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 1)


def flip_a_bit(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)

    return damage


def delete(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def manifest_of(content: Any) -> Callable[[Path], None]:
    return lambda path: (path / "manifest.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a shard is truncated": (truncate, r"shard_00001_of_00002\.pth: it has \d+ bytes in place of \d+"),
    "a bit of a shard": (flip_a_bit(FILES[2]), r"shard_00000_of_00002\.pth: its content does not match its checksum"),
    "a bit of the rest": (flip_a_bit("common.pth"), r"common\.pth: its content does not match its checksum"),
    "a shard is deleted": (delete(FILES[3]), r"shard_00001_of_00002\.pth: the file is missing"),
    "the rest is deleted": (delete("common.pth"), r"common\.pth: the file is missing"),
    "no manifest": (delete("manifest.json"), r"manifest\.json is missing"),
    "half a manifest": (manifest_of('{"format": 1, "fi'), r"manifest\.json is damaged"),
    "a manifest of another kind": (manifest_of([1]), r"manifest\.json is damaged"),
    "a manifest of nothing": (manifest_of({"files": {}}), r"manifest\.json is damaged"),
    "a manifest without sizes": (manifest_of({"files": {"common.pth": {}}}), r"manifest\.json is damaged"),
    "a manifest of files elsewhere": (
        manifest_of({"files": {"../common.pth": {"size": 1, "sha256": ""}}}),
        r"manifest\.json is damaged",
    ),
    "an empty folder": (lambda path: [file.unlink() for file in path.iterdir()], r"manifest\.json is missing"),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize(("damage", "problem"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_seen_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None], problem: str, warnings_of: pytest.LogCaptureFixture
) -> None:
    earlier, path = save(tmp_path, 1, 2)
    assert verify(path) is None
    damage(path)
    found = verify(path)
    assert found is not None
    assert re.fullmatch(problem, found)
    assert newest_valid(tmp_path) == CheckpointFile(earlier, 1)
    assert f"checkpoint {path} is passed over: {found}" in warnings_of.text
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert str(error.value) == f"checkpoint {path} is damaged: {found}; use an earlier one"


def test_both_kinds_in_one_directory(tmp_path: Path, warnings_of: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 10, 30)
    save_file(tmp_path, 20)
    save_file(tmp_path, 40)
    for other in ("iter_50.tmp", "iter_60.old.tmp", "iter_x"):
        (tmp_path / other).mkdir()
    assert [item.path.name for item in find_checkpoints(tmp_path)] == [
        "iter_40.pth",
        "iter_30",
        "iter_20.pth",
        "iter_10",
    ]
    with (tmp_path / "iter_40.pth").open("ab") as file:
        file.write(b"x")
    truncate(tmp_path / "iter_30")
    assert newest_valid(tmp_path) == CheckpointFile(tmp_path / "iter_20.pth", 20)
    remove_checkpoint(tmp_path / "iter_20.pth")
    assert newest_valid(tmp_path) == CheckpointFile(tmp_path / "iter_10", 10)
    remove_checkpoint(tmp_path / "iter_10")
    remove_checkpoint(tmp_path / "iter_10")
    with pytest.raises(CheckpointError, match=r"^none of the 2 checkpoints in .* is whole: restore one, or start"):
        newest_valid(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["iter_30", "iter_40.pth", "iter_40.pth.json", "iter_x", "last_checkpoint"]


def test_the_same_step_anew(tmp_path: Path) -> None:
    """Of either kind, over either kind: only the new one is left."""
    save(tmp_path, 5, world_size=3)
    save(tmp_path, 5)
    assert names(tmp_path / "iter_5") == FILES
    path = save_file(tmp_path, 5)
    assert names(tmp_path) == ["iter_5.pth", "iter_5.pth.json", "last_checkpoint"]
    assert verify(path) is None
    save(tmp_path, 5)
    assert names(tmp_path) == ["iter_5", "last_checkpoint"]
    assert verify(tmp_path / "iter_5") is None


def test_moved_and_renamed(tmp_path: Path, warnings_of: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "before", 1, 2)
    shutil.move(tmp_path / "before", tmp_path / "after")
    assert newest_valid(tmp_path / "after") == CheckpointFile(tmp_path / "after" / "iter_2", 2)
    shutil.move(tmp_path / "after" / "iter_2", tmp_path / "best")
    assert is_sharded(tmp_path / "best")
    assert load_checkpoint(tmp_path / "best")["meta"]["step"] == 2
    assert warnings_of.text == ""


def test_one_that_cannot_be_deleted_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings_of: pytest.LogCaptureFixture
) -> None:
    (path,) = save(tmp_path, 1)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint.shutil, "rmtree", fail)
    remove_checkpoint(path)
    assert f"old checkpoint {path} could not be deleted: [Errno 13] Permission denied" in warnings_of.text
    # Whatever is left of it is no checkpoint.
    assert find_checkpoints(tmp_path) == []


# ---------------------------------------------------------------- loading what is whole, but wrong


def rewritten(path: Path, name: str, content: Any) -> None:
    """Another content of a file, which the manifest agrees with."""
    torch.save(content, path / name)
    manifest = json.loads((path / "manifest.json").read_text())
    digest = subprocess.run(["sha256sum", path / name], capture_output=True, text=True, check=True).stdout.split()[0]
    manifest["files"][name] = {"size": (path / name).stat().st_size, "sha256": digest}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert verify(path) is None


class Hostile:
    """Loading it would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["common.pth", FILES[3]])
def test_a_hostile_pickle_is_refused(tmp_path: Path, name: str) -> None:
    (path,) = save(tmp_path, 1)
    rewritten(path, name, {"state_dict": Hostile(tmp_path / "made")})
    with pytest.raises(CheckpointError, match=rf"{name} is not a readable checkpoint: it holds posix\.mkdir, and only"):
        load_checkpoint(path)
    assert not (tmp_path / "made").exists()


def test_shards_that_do_not_fit_together(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    rewritten(path, FILES[3], torch.load(path / FILES[2]))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert str(error.value) == (
        f"checkpoint {path} is damaged: its shards do not make up the whole of a; use an earlier one"
    )


@pytest.mark.parametrize("content", [[1], {}, {"state_dict": {"a": 1}}, {"state_dict": {"a": {"shape": (1,)}}}])
def test_shards_of_another_form(tmp_path: Path, content: Any) -> None:
    (path,) = save(tmp_path, 1)
    rewritten(path, FILES[3], content)
    with pytest.raises(CheckpointError, match=rf"^{path} is not a checkpoint of xrlhf: its shards have another form$"):
        load_checkpoint(path)


def test_the_rest_of_another_form(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    rewritten(path, "common.pth", {"meta": {"format": 99}})
    with pytest.raises(CheckpointError, match="was written by a newer xrlhf: update this one"):
        load_checkpoint(path)
    rewritten(path, "common.pth", {"param_schedulers": []})
    with pytest.raises(CheckpointError, match="is not a checkpoint of xrlhf: it has no 'state_dict' and 'meta'"):
        load_checkpoint(path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=rf"^no checkpoint at {tmp_path}/iter_2; {tmp_path} has iter_1$"):
        load_checkpoint(tmp_path / "iter_2")
    for read in (refuse_damaged, load_checkpoint):
        with pytest.raises(
            CheckpointError, match=rf"^{tmp_path} is a folder, not a checkpoint; {tmp_path} has iter_1$"
        ):
            read(tmp_path)
    with pytest.raises(CheckpointError, match=rf"^checkpoint {tmp_path} is damaged: manifest\.json: .*No such file"):
        load_checkpoint(tmp_path, check=False)
    assert not is_sharded(tmp_path)
    assert not is_sharded(save_file(tmp_path, 3))
