"""Recipes that use modules beside them. What a test imports is unlike any other name, as a process imports it once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xrlhf.config import check_recipe, copy_recipe, dump_recipe, load_recipe, resolve
from xrlhf.errors import ConfigError

Write = Callable[..., Path]

MODULE = "def keep(row):\n    return row\n\nNUMBER = 7\n"


@pytest.fixture(autouse=True)
def path_as_before() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


def test_a_module_beside_the_recipe_is_imported(write: Write, tmp_path: Path) -> None:
    write(MODULE, "beside_a.py")
    cfg = load_recipe(write("from beside_a import NUMBER, keep\nsources = [dict(map_fn=keep)]\nx = NUMBER\n"))
    assert cfg.to_dict() == {
        "sources": [{"map_fn": "beside_a.keep"}],
        "x": 7,
        "module_folders": [str(tmp_path)],
    }
    assert resolve(cfg.sources[0].map_fn)(3) == 3


def test_a_package_or_a_name_in_quotes_will_do(write: Write, tmp_path: Path) -> None:
    write(MODULE, "beside_b/maps.py")
    cfg = load_recipe(write("map_fn = 'beside_b.maps.keep'\n"))
    assert cfg.module_folders == [str(tmp_path)]
    assert resolve(cfg.map_fn)(3) == 3


def test_a_name_given_on_the_command_line_will_do(write: Write, tmp_path: Path) -> None:
    write(MODULE, "beside_c.py")
    cfg = load_recipe(write("map_fn = 'json.loads'\n"), ["map_fn=beside_c.keep"])
    assert cfg.to_dict() == {"map_fn": "beside_c.keep", "module_folders": [str(tmp_path)]}
    assert resolve(cfg.map_fn)(3) == 3


def test_recipes_that_need_no_folder_get_none(write: Write, tmp_path: Path) -> None:
    """Neither a module that only computes a value, nor one that is installed, nor plain text with dots."""
    write(MODULE, "beside_d.py")
    write(MODULE, "json.py")
    cfg = load_recipe(write("import json\nfrom beside_d import NUMBER\nx = NUMBER\ny = json.dumps(1)\nz = 'a.b'\n"))
    assert cfg.to_dict() == {"x": 7, "y": "1", "z": "a.b"}
    write("x = 1\n", "other/recipe.py")
    load_recipe(tmp_path / "other" / "recipe.py")
    assert str(tmp_path / "other") not in sys.path


def test_a_file_is_no_module(write: Write, tmp_path: Path) -> None:
    """Though the name of one beside a module of that name reads like a dotted name."""
    write(MODULE, "beside_m.py")
    write("{}", "beside_m.jsonl")
    assert load_recipe(write("data_path = 'beside_m.jsonl'\n")).to_dict() == {"data_path": "beside_m.jsonl"}
    assert str(tmp_path) not in sys.path


def test_further_folders_are_named_in_the_recipe(write: Write, tmp_path: Path) -> None:
    write(MODULE, "lib/beside_e.py")
    file = write("from beside_e import keep\nmodule_folders = ['../lib']\nmap_fn = keep\n", "recipes/recipe.py")
    assert load_recipe(file).to_dict() == {"map_fn": "beside_e.keep", "module_folders": [str(tmp_path / "lib")]}


def test_the_folder_comes_last_on_the_path(write: Write, tmp_path: Path) -> None:
    write(MODULE, "beside_f.py")
    load_recipe(write("from beside_f import keep\nmap_fn = keep\n"))
    assert sys.path[-1] == str(tmp_path)


def test_a_base_brings_its_own_folder(write: Write, tmp_path: Path) -> None:
    write(MODULE, "bases/beside_g.py")
    write("from beside_g import keep\nmap_fn = keep\n", "bases/base.py")
    write(MODULE, "beside_h.py")
    cfg = load_recipe(write("_base_ = 'bases/base.py'\nfrom beside_h import keep\nother = keep\n"))
    assert cfg.to_dict() == {
        "map_fn": "beside_g.keep",
        "other": "beside_h.keep",
        "module_folders": [str(tmp_path), str(tmp_path / "bases")],
    }


def test_the_dump_and_the_copy_find_the_modules_from_elsewhere(write: Write, tmp_path: Path) -> None:
    """In processes of their own, which have imported nothing yet."""
    write(MODULE, "mine/beside_i.py")
    write(MODULE, "mine/lib/beside_j.py")
    text = """
        from beside_i import keep
        from beside_j import NUMBER
        module_folders = [
            "lib",  # and more
        ]
        map_fn = keep
        other = "beside_j.keep"
        """
    recipe = write(text, "mine/recipe.py")
    plain = write("from beside_i import keep\nmap_fn = keep\n", "mine/plain.py")
    copies = [copy_recipe(recipe, tmp_path / "copies"), copy_recipe(plain, tmp_path / "copies")]
    assert "# and more" not in copies[0].read_text()
    dump_recipe(load_recipe(recipe), tmp_path / "run" / "recipe.py")
    for file in (*copies, tmp_path / "run" / "recipe.py"):
        code = (
            "import sys; from xrlhf.config import load_recipe, resolve\n"
            "cfg = load_recipe(sys.argv[1])\nprint(resolve(cfg.get('other', cfg.map_fn))(5))"
        )
        done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "5", done.stderr


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("module_folders = 'lib'\n", 1),
        ("x = 1\nmodule_folders = [x]\n", 2),
        ("module_folders = ['.']\nmodule_folders = ['.']\n", 2),
        ("if True:\n    module_folders = ['.']\n", 2),
    ],
)
def test_folders_that_cannot_be_read_off(write: Write, text: str, line: int) -> None:
    file = write(text)
    with pytest.raises(ConfigError) as error:
        load_recipe(file)
    assert str(error.value) == (
        f'{file}:{line}: write module_folders = ["FOLDER", ...] once, at the top level, with plain strings'
    )


def test_a_folder_that_is_not_there(write: Write, tmp_path: Path) -> None:
    file = write("x = 1\nmodule_folders = ['lib']\n")
    with pytest.raises(ConfigError) as error:
        load_recipe(file)
    assert str(error.value) == f"{file}:2: module_folders: there is no folder {tmp_path / 'lib'}"


def test_two_modules_of_one_name_in_one_process(write: Write, tmp_path: Path) -> None:
    write(MODULE, "one/beside_k.py")
    write(MODULE, "two/beside_k.py")
    load_recipe(write("from beside_k import keep\nmap_fn = keep\n", "one/recipe.py"))
    second = write("from beside_k import keep\nmap_fn = keep\n", "two/recipe.py")
    with pytest.raises(ConfigError) as error:
        load_recipe(second)
    assert str(error.value) == (
        f"{second}: the module 'beside_k' is {tmp_path / 'two' / 'beside_k.py'} here, and this process has imported "
        f"another of that name, {tmp_path / 'one' / 'beside_k.py'}, for another recipe: rename one of them, or use two "
        "processes"
    )


def test_an_installed_module_comes_first_and_the_message_says_so(write: Write, tmp_path: Path) -> None:
    ours = write(MODULE, "recipe_parts.py")
    with pytest.raises(ConfigError, match="cannot import name 'keep' from 'recipe_parts'") as error:
        load_recipe(write("from recipe_parts import keep\n"))
    assert str(error.value).endswith(f"recipe_parts.py before {ours}: rename yours")


def test_the_check_finds_parts_beside_the_recipe(write: Write) -> None:
    write("def keep(row, column='a'):\n    return row\n", "beside_l.py")
    cfg = load_recipe(write("map_fn = dict(type='beside_l.keep', colum='b')\n"))
    with pytest.raises(ConfigError, match="map_fn: keep has no argument 'colum'; nearest: 'column'"):
        check_recipe(cfg, {"map_fn": ["row"]})
