"""Hashes of file contents and the memory that saves reading a file twice."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from xrlhf.data.sources.fingerprint import combine, file_digest
from xrlhf.errors import DataError


def settle(path: Path) -> None:
    """Make a file look an hour old, so that its hash may be remembered."""
    then = time.time() - 3600
    os.utime(path, (then, then))


def test_the_digest_follows_content_not_name(tmp_path: Path) -> None:
    for name, content in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(content)
    assert file_digest(tmp_path / "a") == file_digest(tmp_path / "b") != file_digest(tmp_path / "c")


def test_borders_between_parts_count() -> None:
    assert combine(["ab", "c"]) != combine(["a", "bc"]) != combine(["abc"])
    assert combine(["a", b"b"]) == combine([b"a", "b"])


def test_a_remembered_file_is_not_read_again(tmp_path: Path) -> None:
    path, memory = tmp_path / "data", tmp_path / "cache" / "deep"
    path.write_text("before")
    settle(path)
    first = file_digest(path, memory)
    times = path.stat().st_mtime_ns
    # The same size and time with other bytes: only a digest taken from memory can stay the same.
    path.write_text("behind")
    os.utime(path, ns=(times, times))
    assert file_digest(path, memory) == first
    assert file_digest(path) != first


def test_a_changed_file_is_read_again_and_its_old_entry_goes(tmp_path: Path) -> None:
    path, memory = tmp_path / "data", tmp_path / "cache"
    path.write_text("before")
    settle(path)
    first = file_digest(path, memory)
    path.write_text("after it")
    settle(path)
    assert file_digest(path, memory) != first
    assert len(json.loads((memory / "file_hashes.json").read_text())) == 1


def test_a_file_that_may_still_change_is_not_remembered(tmp_path: Path) -> None:
    path, memory = tmp_path / "data", tmp_path / "cache"
    path.write_text("fresh")
    file_digest(path, memory)
    assert not (memory / "file_hashes.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_damaged_memory_is_replaced(tmp_path: Path, content: str) -> None:
    path, memory = tmp_path / "data", tmp_path / "file_hashes.json"
    path.write_text("x")
    settle(path)
    memory.write_text(content)
    digest = file_digest(path, tmp_path)
    assert list(json.loads(memory.read_text()).values()) == [digest]


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    path, blocked = tmp_path / "data", tmp_path / "blocked"
    path.write_text("x")
    settle(path)
    blocked.write_text("a file where the folder should be")
    assert file_digest(path, blocked) == file_digest(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: cannot be read \(No such file or directory\)"):
        file_digest(tmp_path / "gone")


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_text("x")
    real_stat, calls = os.stat, []

    def growing(target: object, *args: object, **kwargs: object) -> os.stat_result:
        if os.fspath(target) == os.fspath(path):  # type: ignore[call-overload]
            calls.append(target)
            if len(calls) == 2:
                path.write_text("x and more")
        return real_stat(target, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("xrlhf.data.sources.fingerprint.os.stat", growing)
    with pytest.raises(DataError, match="changed while it was being read"):
        file_digest(path)
