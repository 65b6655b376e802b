from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from xrlhf.errors import UserError
from xrlhf.export.directory import check_new_directory, new_directory


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_directory_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_directory(out) as aside:
        (aside / "file").write_text("x")
        assert not out.exists()
        assert aside.parent == out.parent
    assert names(out) == ["file"]
    assert names(out.parent) == ["out"]


def test_an_empty_directory_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with new_directory(out) as aside:
        (aside / "file").write_text("x")
    assert names(out) == ["file"]


def test_others_may_read_it_as_far_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with new_directory(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def write_and_fail(out: Path, error: BaseException) -> None:
    with new_directory(out) as aside:
        (aside / "file").write_text("x")
        raise error


@pytest.mark.parametrize("error", [ValueError("half-way"), KeyboardInterrupt()])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_and_fail(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out could not be written: .*No space left"):
        write_and_fail(tmp_path / "out", OSError(28, "No space left on device"))
    assert names(tmp_path) == []


def test_an_empty_directory_stays_when_the_block_fails(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="half-way"):
        write_and_fail(tmp_path / "out", ValueError("half-way"))
    assert names(tmp_path) == ["out"]


def test_a_full_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    for refuse in (check_new_directory, lambda path: new_directory(path).__enter__()):
        with pytest.raises(UserError, match="out exists and is not empty: choose another directory, or remove it"):
            refuse(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="exists and is not empty"):
        check_new_directory(tmp_path / "out")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/out cannot be written"), new_directory(tmp_path / "file" / "out"):
        pass


def test_a_place_taken_in_the_meantime_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def both_write() -> None:
        with new_directory(out) as aside:
            (aside / "file").write_text("x")
            out.mkdir()
            (out / "theirs").write_text("y")

    with pytest.raises(UserError, match="out could not be written"):
        both_write()
    assert names(out) == ["theirs"]
    assert names(tmp_path) == ["out"]


def test_only_named_files_are_replaced(tmp_path: Path) -> None:
    """An error of the block leaves the earlier content; another file refuses the whole."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("earlier")
    with pytest.raises(ZeroDivisionError), new_directory(out, replace=("a.txt",)):
        raise ZeroDivisionError
    assert (out / "a.txt").read_text() == "earlier"
    with new_directory(out, replace=("a.txt",)) as aside:
        (aside / "b.txt").write_text("new")
    assert [file.name for file in out.iterdir()] == ["b.txt"]
    with pytest.raises(UserError, match=r"out holds 'b\.txt', which is no part of what would be replaced"):
        check_new_directory(out, replace=("a.txt",))
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
