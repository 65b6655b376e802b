from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xrlhf.config import copy_recipe, find_recipe, load_recipe
from xrlhf.errors import ConfigError


@pytest.mark.parametrize("name", ["reward/tiny_reward", "dpo/tiny_dpo", "flat"])
def test_a_copy_loads_as_the_original_wherever_it_lies(clone: Path, tmp_path: Path, name: str) -> None:
    copy = copy_recipe(name, tmp_path / "far" / "away")
    assert copy == tmp_path / "far" / "away" / f"{name.rpartition('/')[2]}_copy.py"
    assert load_recipe(copy).to_dict() == load_recipe(find_recipe(name)).to_dict()
    assert load_recipe(copy, ["hooks.timer.interval=1"]).hooks.timer.interval == 1
    moved = copy.rename(tmp_path / "moved.py")
    assert load_recipe(moved).log_interval == 10


def test_only_the_base_changes_in_the_text(clone: Path, tmp_path: Path) -> None:
    copy = copy_recipe("tiny_reward", tmp_path)
    original = (clone / "reward" / "tiny_reward.py").read_text()
    assert copy.read_text() == original.replace('"../_base_/runtime.py"', "'xrlhf::_base_/runtime.py'")


def test_several_bases_odd_bytes_and_a_copy_of_a_copy(clone: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    write("own = 1\n", "mine/own.py")
    file = write("", "mine/recipe.py")
    file.write_bytes(
        b"\xef\xbb\xbf_base_ = ['own.py', # \xc3\xa9\r\n  'xrlhf::_base_/runtime.py']; \xc3\xa9 = '\xc3\xa9'\r\n"
        b"x = 1\r\n"
    )
    first = copy_recipe(file, tmp_path / "a")
    second = copy_recipe(first, tmp_path / "b")
    assert second.name == "recipe_copy_copy.py"
    assert load_recipe(second).to_dict() == load_recipe(file).to_dict()
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().count(b"\r\n") == 3
    assert f"['{tmp_path}/mine/own.py', # é".encode() in first.read_bytes()


def test_nothing_is_overwritten(clone: Path, tmp_path: Path) -> None:
    copy = copy_recipe("flat", tmp_path)
    copy.write_text("mine = 1\n")
    with pytest.raises(ConfigError, match=r"flat_copy\.py exists already and is not overwritten"):
        copy_recipe("flat", tmp_path)
    assert copy.read_text() == "mine = 1\n"
    with pytest.raises(ConfigError, match=r"flat_copy\.py exists already and is not overwritten"):
        copy_recipe("flat", copy)
    with pytest.raises(ConfigError, match=r"cannot be written: Not a directory"):
        copy_recipe("flat", copy / "below")


def test_what_cannot_be_copied(clone: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'falt'.*nearest: 'flat'"):
        copy_recipe("falt", tmp_path)
    (clone / "flat.py").write_text("x = = 1\n")
    with pytest.raises(ConfigError, match=r"flat\.py:1: SyntaxError"):
        copy_recipe("flat", tmp_path)
    assert not (tmp_path / "flat_copy.py").exists()
