"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xrlhf.files import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_when_the_block_is_done(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with replacing(target) as aside:
        aside.write_text("new")
        assert aside.parent == target.parent
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


def test_the_old_content_stays_until_then(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with replacing(str(target)) as aside:
        aside.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("has_begun", [True, False])
def test_a_failure_leaves_everything_as_it_was(tmp_path: Path, error: type[BaseException], has_begun: bool) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")

    def fail() -> None:
        with replacing(target) as aside:
            if has_begun:
                aside.write_text("a part of the n")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    with replacing(tmp_path / "one" / "two" / "a.txt") as aside:
        aside.write_text("x")
    assert (tmp_path / "one" / "two" / "a.txt").read_text() == "x"


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    with pytest.raises(OSError, match="one"), replacing(tmp_path / "one" / "a.txt"):
        pytest.fail("nothing could be written there")


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="a"), replacing(tmp_path / "a") as aside:
        aside.write_text("x")
    assert names(tmp_path) == ["a"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_processes_do_not_write_to_one_name(tmp_path: Path) -> None:
    """Another process begins and ends while this one is at work on the same file."""
    other = "import sys, xrlhf.files as files\nwith files.replacing(sys.argv[1]) as aside: aside.write_text('b')"
    target = tmp_path / "a"
    with replacing(target) as aside:
        aside.write_text("a")
        subprocess.run(
            [sys.executable, "-c", other, str(target)],
            check=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        assert target.read_text() == "b"
    assert target.read_text() == "a"
    assert names(tmp_path) == ["a"]
