"""Checkpoints as transactions: whole or absent, verified, and plain."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from xrlhf.engine import checkpoint
from xrlhf.engine.checkpoint import (
    find_checkpoints,
    load_checkpoint,
    load_strictly,
    newest_valid,
    remove_checkpoint,
    remove_leftovers,
    save_checkpoint,
    verify,
)
from xrlhf.errors import CheckpointError


def state(value: float = 1.0, size: int = 4) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((size,), value)}, "meta": {"step": 1, "format": 1}}


def save(folder: Path, *steps: int) -> list[Path]:
    paths = [folder / f"iter_{step}.pth" for step in steps]
    for step, path in zip(steps, paths, strict=True):
        save_checkpoint(state(float(step)), path)
    return paths


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    # A run in this process may have cut the package's logger off from the root.
    monkeypatch.setattr(logging.getLogger("xrlhf"), "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


# ---------------------------------------------------------------- saving


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = {
        "state_dict": OrderedDict(weight=torch.arange(6.0).view(2, 3), half=torch.ones(2, dtype=torch.bfloat16)),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]},
        "meta": {"step": 7, "format": 1, "size": torch.Size([2, 3]), "none": None, "yes": True, "bytes": b"\x00\xff"},
    }
    path = tmp_path / "runs" / "iter_7.pth"
    save_checkpoint(saved, path)
    assert names(path.parent) == ["iter_7.pth", "iter_7.pth.json", "last_checkpoint"]
    assert (path.parent / "last_checkpoint").read_text() == "iter_7.pth"
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["weight"], saved["state_dict"]["weight"])
    assert loaded["state_dict"]["half"].dtype is torch.bfloat16
    assert loaded["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    assert loaded["meta"] == saved["meta"]
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []


def test_the_manifest_holds_size_and_sha256(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 3)
    manifest = json.loads((tmp_path / "iter_3.pth.json").read_text())
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert manifest == {"format": 1, "size": path.stat().st_size, "sha256": digest}


def test_an_old_file_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "iter_1.pth"
    save_checkpoint(state(1.0), path)
    save_checkpoint(state(2.0, size=9), path)
    assert verify(path) is None
    assert torch.equal(load_checkpoint(path)["state_dict"]["weight"], torch.full((9,), 2.0))


class Hostile:
    """Loading it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.float64(1.0), "numpy.float64"),  # a subclass of float
        (np.zeros(2), "numpy.ndarray"),
        (torch.__version__, "torch.torch_version.TorchVersion"),  # a subclass of str
        (torch.float32, "torch.dtype"),
        (Path("x"), "PosixPath"),
        (print, "builtin_function_or_method"),
        (Hostile(Path("x")), "Hostile"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_are_not_plain_are_refused_at_save(tmp_path: Path, value: Any, kind: str) -> None:
    saved = {**state(), "meta": {"list": [1, {"inner": value}]}}
    with pytest.raises(TypeError, match=r"checkpoint\['meta'\]\['list'\]\[1\]\['inner'\] is a .*" + kind):
        save_checkpoint(saved, tmp_path / "iter_1.pth")
    assert names(tmp_path) == []


def test_keys_that_are_not_plain_are_refused_at_save(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\['meta'\] has a key of type int64: only plain values"):
        save_checkpoint({**state(), "meta": {np.int64(1): 1}}, tmp_path / "iter_1.pth")


def test_an_error_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (earlier,) = save(tmp_path, 1)
    before = names(tmp_path)

    def fail(*args: Any, **kwargs: Any) -> None:
        args[1].write(b"half a file")
        raise RuntimeError("the writer gave up\nand says why")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError) as error:
        save_checkpoint(state(), tmp_path / "iter_2.pth")
    assert str(error.value).startswith(
        f"checkpoint {tmp_path / 'iter_2.pth'} could not be written (the writer gave up and says why); "
    )
    assert str(error.value).endswith(" MiB are free there; earlier checkpoints are untouched")
    assert names(tmp_path) == before
    assert verify(earlier) is None


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interruption_while_writing_passes_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    save(tmp_path, 1)
    before = names(tmp_path)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        args[1].write(b"half a file")
        raise interruption

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(interruption):
        save_checkpoint(state(), tmp_path / "iter_2.pth")
    assert names(tmp_path) == before


def test_an_error_at_the_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    before = names(tmp_path)

    def fail(*args: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(checkpoint.os, "replace", fail)
    with pytest.raises(CheckpointError, match=r"iter_2\.pth could not be written \(\[Errno 1\] Operation not permit"):
        save_checkpoint(state(), tmp_path / "iter_2.pth")
    assert names(tmp_path) == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/iter_1\.pth could not be written"):
        save_checkpoint(state(), tmp_path / "file" / "iter_1.pth")


def test_a_pointer_that_cannot_be_written_is_only_a_warning(
    tmp_path: Path, warnings_of: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "last_checkpoint").mkdir()
    save_checkpoint(state(), tmp_path / "iter_1.pth")
    assert "last_checkpoint could not be written" in warnings_of.text
    assert newest_valid(tmp_path) == checkpoint.CheckpointFile(tmp_path / "iter_1.pth", 1)


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from xrlhf.engine.checkpoint import save_checkpoint
from xrlhf.errors import CheckpointError

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
save_checkpoint({"state_dict": {"w": torch.ones(10)}, "meta": {}}, folder / "iter_1.pth")
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    save_checkpoint({"state_dict": {"w": torch.ones(int(sys.argv[3]))}, "meta": {}}, folder / "iter_2.pth")
except CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "elements"),
    [(1_000_000, 1_000_000), (50_000, 20_000), (3_000, 1_000)],
    ids=["in a large write", "in a small write", "when the last bytes are flushed"],
)
def test_a_full_disk(tmp_path: Path, limit: int, elements: int) -> None:
    """A file size limit fails a write as a full disk does; the message is the system's, not the writer's own."""
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(limit), str(elements)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.stdout.startswith(
        f"checkpoint {tmp_path / 'iter_2.pth'} could not be written ([Errno 27] File too large); "
    )
    assert names(tmp_path) == ["iter_1.pth", "iter_1.pth.json", "last_checkpoint"]
    assert (tmp_path / "last_checkpoint").read_text() == "iter_1.pth"
    assert verify(tmp_path / "iter_1.pth") is None


def test_a_really_full_disk(tmp_path: Path) -> None:
    """``/dev/full`` answers every write with ENOSPC."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    save(tmp_path, 1)
    (tmp_path / "iter_2.pth.tmp").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"iter_2\.pth could not be written \(\[Errno 28\] No space left"):
        save_checkpoint(state(size=100_000), tmp_path / "iter_2.pth")
    assert names(tmp_path) == ["iter_1.pth", "iter_1.pth.json", "last_checkpoint"]


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    # The scores may be those of another command that is at work.
    others = ["notes.json", "notes.tmp", "iter_5.pth.bak", ".scores.jsonl.12.tmp"]
    kept = [*names(tmp_path), *others]
    cut_off = ["iter_2.pth.tmp", "iter_2.pth.json.tmp", "last_checkpoint.tmp", "iter_3.pth.json"]
    for name in [*others, *cut_off, ".data_report.json.12.tmp", ".curves.png.345.tmp", ".tiny.py.6.tmp"]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(kept)
    remove_leftovers(tmp_path / "missing")


# ---------------------------------------------------------------- finding and verifying


def test_checkpoints_are_found_newest_first(tmp_path: Path) -> None:
    save(tmp_path, 9, 10, 100)
    for other in ("iter_11.pth.tmp", "iter_x.pth", "xiter_12.pth", "iter_13.pt"):
        (tmp_path / other).touch()
    assert [item.step for item in find_checkpoints(tmp_path)] == [100, 10, 9]
    assert find_checkpoints(tmp_path / "missing") == []
    assert newest_valid(tmp_path / "missing") is None


def damage_truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def damage_flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_remove_manifest(path: Path) -> None:
    path.with_name(path.name + ".json").unlink()


def write_manifest(text: bytes) -> Any:
    def damage(path: Path) -> None:
        path.with_name(path.name + ".json").write_bytes(text)

    return damage


DAMAGES = {
    "truncated": (damage_truncate, r"it has \d+ bytes in place of \d+"),
    "a flipped bit": (damage_flip_a_bit, "its content does not match its checksum"),
    "empty": (damage_empty, r"it has 0 bytes in place of \d+"),
    "no manifest": (damage_remove_manifest, r"iter_\d+\.pth\.json is missing"),
    "half a manifest": (write_manifest(b'{"format": 1, "si'), r"iter_\d+\.pth\.json is damaged"),
    "a manifest of another kind": (write_manifest(b"[1, 2]"), r"iter_\d+\.pth\.json is damaged"),
    "a manifest of bytes": (write_manifest(b"\xff\xfe"), r"iter_\d+\.pth\.json is damaged"),
    "a manifest without a size": (write_manifest(b'{"size": Infinity, "sha256": ""}'), r"\.json is damaged"),
    "no file": (Path.unlink, "the file is missing"),
}


@pytest.mark.parametrize(("damage", "problem"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_seen(tmp_path: Path, damage: Any, problem: str) -> None:
    (path,) = save(tmp_path, 1)
    assert verify(path) is None
    damage(path)
    found = verify(path)
    assert found is not None
    assert re.fullmatch(f".*{problem}.*", found)


@pytest.mark.parametrize("damage", [d for d, _ in DAMAGES.values() if d is not Path.unlink])
def test_the_newest_whole_one_is_used(tmp_path: Path, damage: Any, warnings_of: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1, 2, 3)
    damage(tmp_path / "iter_3.pth")
    damage(tmp_path / "iter_2.pth")
    assert newest_valid(tmp_path) == checkpoint.CheckpointFile(tmp_path / "iter_1.pth", 1)
    for step in (3, 2):
        assert f"checkpoint {tmp_path / f'iter_{step}.pth'} is passed over: " in warnings_of.text


def test_the_newest_is_missing(tmp_path: Path, warnings_of: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1, 2)
    remove_checkpoint(tmp_path / "iter_2.pth")
    assert newest_valid(tmp_path) == checkpoint.CheckpointFile(tmp_path / "iter_1.pth", 1)
    assert "last_checkpoint names 'iter_2.pth', which is not there" in warnings_of.text


@pytest.mark.parametrize("pointer", [b"", b"iter_77.pth", b"/elsewhere/iter_1.pth", b"\xff\xfe\x00"])
def test_the_pointer_is_only_a_hint(tmp_path: Path, pointer: bytes) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "last_checkpoint").write_bytes(pointer)
    assert newest_valid(tmp_path) == checkpoint.CheckpointFile(tmp_path / "iter_2.pth", 2)
    (tmp_path / "last_checkpoint").unlink()
    assert newest_valid(tmp_path) == checkpoint.CheckpointFile(tmp_path / "iter_2.pth", 2)


def test_a_moved_directory(tmp_path: Path, warnings_of: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "before", 1, 2)
    shutil.move(tmp_path / "before", tmp_path / "after")
    assert newest_valid(tmp_path / "after") == checkpoint.CheckpointFile(tmp_path / "after" / "iter_2.pth", 2)
    assert warnings_of.text == ""


def test_all_damaged(tmp_path: Path) -> None:
    for path in save(tmp_path, 1, 2):
        damage_truncate(path)
    with pytest.raises(CheckpointError) as error:
        newest_valid(tmp_path)
    assert str(error.value) == (
        f"none of the 2 checkpoints in {tmp_path} is whole: restore one, or start afresh in another --work-dir"
    )


def test_a_checkpoint_that_cannot_be_deleted_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings_of: pytest.LogCaptureFixture
) -> None:
    (path,) = save(tmp_path, 1)

    def fail(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", fail)
    remove_checkpoint(path)
    assert f"old checkpoint {path} could not be deleted: [Errno 13] Permission denied" in warnings_of.text


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize(("damage", "problem"), [DAMAGES[name] for name in ("truncated", "a flipped bit", "empty")])
def test_loading_a_damaged_one(tmp_path: Path, damage: Any, problem: str) -> None:
    (path,) = save(tmp_path, 1)
    damage(path)
    with pytest.raises(CheckpointError, match=rf"checkpoint {path} is damaged: {problem}; use an earlier one"):
        load_checkpoint(path)


def test_loading_a_truncated_one_without_a_manifest(tmp_path: Path, warnings_of: pytest.LogCaptureFixture) -> None:
    (path,) = save(tmp_path, 1)
    damage_remove_manifest(path)
    assert load_checkpoint(path)["meta"]["step"] == 1
    assert f"{path} has no manifest beside it: it is read unverified" in warnings_of.text
    damage_truncate(path)
    with pytest.raises(CheckpointError, match=rf"{path} is not a readable checkpoint: it is no file of torch, or only"):
        load_checkpoint(path)


def test_loading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "iter_9.pth")
    assert str(error.value) == f"no checkpoint at {tmp_path / 'iter_9.pth'}"
    save(tmp_path, 1, 2)
    with pytest.raises(CheckpointError, match=rf"iter_9\.pth; {tmp_path} has iter_2\.pth, iter_1\.pth"):
        load_checkpoint(tmp_path / "iter_9.pth")
    with pytest.raises(CheckpointError, match=rf"{tmp_path} is a folder, not a checkpoint; {tmp_path} has iter_2"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("as_zip", [True, False], ids=["torch file", "bare pickle"])
def test_a_hostile_pickle_is_refused(tmp_path: Path, as_zip: bool) -> None:
    path, target = tmp_path / "iter_1.pth", tmp_path / "made by the pickle"
    hostile = {**state(), "extra": Hostile(target)}
    if as_zip:
        torch.save(hostile, path)
        reason = r"it holds posix\.mkdir, and only tensors and plain values are read, for safety"
    else:
        path.write_bytes(pickle.dumps(hostile))
        reason = "it is no file of torch, or only a part of one"
    with pytest.raises(CheckpointError, match=rf"{path} is not a readable checkpoint: {reason}$"):
        load_checkpoint(path)
    assert not target.exists()
    # The file does what it says to a reader that trusts it.
    torch.load(path, weights_only=False) if as_zip else pickle.loads(path.read_bytes())
    assert target.exists()


@pytest.mark.parametrize("content", [b"", b"some text", b"PK\x03\x04 and no more"])
def test_another_kind_of_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "iter_1.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{path} is not a readable checkpoint: it is no file of torch, or only"):
        load_checkpoint(path)


def test_a_torch_file_whose_inside_is_broken(tmp_path: Path) -> None:
    """A zip archive, whole as such, whose pickle is not one: torch's own words are long and advise an unsafe load."""
    path = tmp_path / "iter_1.pth"
    torch.save(state(), path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, b"\x80\x02no pickle" if name.endswith("data.pkl") else content)
    with pytest.raises(CheckpointError, match=rf"^{path} is not a readable checkpoint: \S") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    print(error.value)


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"weight": torch.ones(1)}, {"state_dict": {}}, {"state_dict": torch.ones(1), "meta": {}}],
)
def test_a_torch_file_of_another_kind(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "iter_1.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"{path} is not a checkpoint of xrlhf: it has no 'state_dict' and"):
        load_checkpoint(path)


def test_a_checkpoint_of_the_future(tmp_path: Path) -> None:
    path = tmp_path / "iter_1.pth"
    save_checkpoint({**state(), "meta": {"format": 99}}, path)
    with pytest.raises(CheckpointError, match=r"was written by a newer xrlhf: update this one"):
        load_checkpoint(path)


# ---------------------------------------------------------------- loading into a model


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def test_weights_are_loaded() -> None:
    source, target = model(), model()
    load_strictly(target, source.state_dict(), set(target.state_dict()), "iter_1.pth")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_a_part_of_the_weights_is_loaded() -> None:
    """As with adapters: the names asked for, and no others, must be there."""
    target = model()
    before = target[0].weight.clone()
    load_strictly(target, {"1.bias": torch.tensor([5.0])}, {"1.bias"}, "iter_1.pth")
    assert target[1].bias.item() == 5.0
    assert torch.equal(target[0].weight, before)


def test_another_architecture() -> None:
    source = model().state_dict()
    renamed = {name.replace("1.", "head."): value for name, value in source.items()}
    missing = {name: value for name, value in source.items() if name != "1.weight"}
    reshaped = {**source, "0.weight": torch.ones(4, 3)}
    for state_dict, problem in (
        (renamed, "it lacks 1.bias; lacks 1.weight; has head.bias, which the model lacks and 1 more"),
        (missing, "it lacks 1.weight"),
        (reshaped, "it has 0.weight of shape (4, 3) in place of (2, 3)"),
    ):
        target = model()
        before = [parameter.clone() for parameter in target.parameters()]
        with pytest.raises(CheckpointError) as error:
            load_strictly(target, state_dict, set(target.state_dict()), "iter_1.pth")
        assert str(error.value) == (
            f"iter_1.pth is of another model than the recipe: {problem}. Use the recipe it was trained with"
        )
        assert all(torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))
