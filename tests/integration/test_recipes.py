"""Every shipped recipe loads, fits what it builds, and says how to launch it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from xrlhf.cli.options import INJECTED
from xrlhf.config import check_recipe, dump_recipe, find_recipe, list_recipes, load_recipe, recipe_summary, shipped_dir

RECIPES = list_recipes()


def test_there_are_recipes() -> None:
    assert "tiny_reward_cpu" in RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_it_fits_what_it_builds(name: str) -> None:
    check_recipe(load_recipe(find_recipe(name)), INJECTED)


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_written_and_read_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe(name))
    dump_recipe(recipe, tmp_path / "again.py")
    again = load_recipe(tmp_path / "again.py")
    assert again.to_dict() == recipe.to_dict()
    check_recipe(again, INJECTED)


@pytest.mark.parametrize("name", RECIPES)
def test_it_says_how_to_launch_it(name: str) -> None:
    file = shipped_dir() / f"{name}.py"
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    launch = re.search(rf"^Launch:.*\bxrlhf train (\S*/)?{name.rpartition('/')[2]}\b", docstring, re.MULTILINE)
    assert launch, f"{file} has no line 'Launch: xrlhf train ...' that names it"
    summary = recipe_summary(file)
    assert summary
    assert len(summary) <= 120


@pytest.mark.parametrize("name", RECIPES)
def test_its_run_goes_to_a_folder_of_its_own_name(name: str) -> None:
    assert Path(load_recipe(find_recipe(name)).work_dir).name == name.rpartition("/")[2]
