from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import recipe_parts
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry

from xrlhf.config import load_recipe
from xrlhf.errors import ConfigError

Write = Callable[..., Path]


def test_a_recipe_becomes_literals(write: Write) -> None:
    file = write(
        '''
        """A recipe."""
        import math
        from recipe_parts import RankingLoss, Trainer, map_row, CONSTANT
        import os.path as osp

        lr: float = 1e-5
        _private = math.inf
        depth, (width, *rest) = 1, (2, 3, 4)
        steps = depth
        steps += 9
        unset: int
        alias = map_row
        module = osp
        model = dict(type=Trainer.from_name, loss=dict(type=RankingLoss), fns=[map_row], betas=(0.9, 0.95), lr=lr)
        for i in range(2):
            model["loop"] = i
            if i:
                inside = "an if in a for"
        '''
    )
    cfg = load_recipe(file)
    assert isinstance(cfg, Config)
    assert cfg.to_dict() == {
        "lr": 1e-5,
        "depth": 1,
        "width": 2,
        "rest": [3, 4],
        "steps": 10,
        "alias": "recipe_parts.map_row",
        "model": {
            "type": "recipe_parts.Trainer.from_name",
            "loss": {"type": "recipe_parts.RankingLoss"},
            "fns": ["recipe_parts.map_row"],
            "betas": (0.9, 0.95),
            "lr": 1e-5,
            "loop": 1,
        },
        "inside": "an if in a for",
    }
    assert cfg.filename == str(file)
    assert isinstance(cfg.model.loss, ConfigDict)
    assert "from recipe_parts import" in cfg.text
    # The runner logs and stores pretty_text.
    compile(cfg.pretty_text, "pretty", "exec")


def test_a_registry_builds_from_a_loaded_recipe(write: Write) -> None:
    cfg = load_recipe(write("from recipe_parts import RankingLoss\nloss = dict(type=RankingLoss, gamma=3.0)\n"))
    loss = Registry("a registry of this test").build(cfg.loss)
    assert type(loss) is recipe_parts.RankingLoss
    assert loss.gamma == 3.0


def test_the_path_may_be_relative_and_the_file_empty(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("", "empty.py")
    monkeypatch.chdir(file.parent)
    cfg = load_recipe("empty.py")
    assert cfg.to_dict() == {}
    assert cfg.filename == str(file)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("x = 1\ndef f():\n    pass\n", 2, "a recipe defines no functions: put 'f' into a module and import it"),
        ("async def f(): ...\n", 1, "a recipe defines no functions: put 'f' into a module"),
        ("x = 1\nclass A:\n    pass\n", 2, "a recipe defines no classes: put 'A' into a module and import it"),
        ("x = dict(\n    f=lambda: 1)\n", 2, "a recipe defines no functions: write the lambda as a function"),
        ("from mmengine.config import read_base\n", 1, "read_base is not supported: write _base_ = 'FILE.py'"),
        ("from recipe_parts import *\n", 1, "'import *' hides what is used"),
        ("x = 1\ny = = 2\n", 2, "SyntaxError: invalid syntax"),
        ("lr = 1\n\nx = lrr\n", 3, "NameError: name 'lrr' is not defined; nearest: 'lr'"),
        ("from recipe_parts import Nothing\n", 1, "ImportError: cannot import name 'Nothing' from 'recipe_parts'"),
        ("import nothing_like_it\n", 1, "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("from .sister import x\n", 1, "; write the full name of the module, or inherit with _base_ = 'FILE.py'"),
        ("x = 1\ny = {}\nz = y['a']\n", 3, "KeyError: 'a'"),
        ("raise SystemExit(3)\n", 1, "SystemExit: 3"),
        ("x = 1 / 0\n", 1, "ZeroDivisionError: division by zero"),
        ("from xrlhf.config import resolve\nx = resolve('nix')\n", 2, "'nix' is not a dotted name"),
        ("text = 1\n", 1, "the name 'text' is reserved (mmengine's Config keeps that name to itself): choose another"),
        ("x = 1\ndict = 2\n", 2, "the name 'dict' is reserved (it would hide Python's own)"),
        ("import torch\nm = dict(\n  dtype=torch.float16)\n", 2, "m.dtype is torch.float16 (torch.dtype)"),
        ("_base_ = 3\n", 1, "_base_ must be a string or a list of strings"),
        ("a = 'x.py'\n_base_ = [a]\n", 2, "_base_ must be a string or a list of strings"),
        ("_base_ = 'x.py'\n_base_ = 'y.py'\n", 2, "_base_ is assigned twice: put all bases into one list"),
        ("if True:\n    _base_ = 'x.py'\n", 2, "write _base_ = 'FILE.py' by itself, at the top level"),
        ("_base_: str = 'x.py'\n", 1, "write _base_ = 'FILE.py' by itself, at the top level"),
        ("x = 1\n_base_ = 'nowhere.py'\n", 2, "_base_ 'nowhere.py' not found: there is no"),
        ("_base_ = 'recipe.py'\n", 1, "_base_ 'recipe.py' makes the recipe inherit from itself"),
        ("_base_ = 'xrlhf::no/such.py'\n", 1, "_base_ 'xrlhf::no/such.py' not found: there is no"),
    ],
)
def test_errors_name_file_and_line(write: Write, clone: Path, text: str, line: int, message: str) -> None:
    file = write(text)
    with pytest.raises(ConfigError) as error:
        load_recipe(file)
    assert str(error.value).startswith(f"{file}:{line}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.py: no such file; `xrlhf list-cfg` lists"):
        load_recipe(tmp_path / "gone.py")
    with pytest.raises(ConfigError, match=r"a recipe is a Python file; its name must end in \.py"):
        load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path / "folder.py")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text: .* at byte 5"):
        load_recipe(tmp_path / "latin.py")
    (tmp_path / "zero.py").write_bytes(b"x = '\0'\n")
    with pytest.raises(ConfigError, match="null bytes"):
        load_recipe(tmp_path / "zero.py")
    (tmp_path / "bom.py").write_bytes(b"\xef\xbb\xbfx = 1\n")
    assert load_recipe(tmp_path / "bom.py").x == 1


BASE = """
log = dict(interval=10, level="INFO", hooks=[1, 2])
seed = 0
out = dict(dir="a", keep=3)
"""


def test_bases_merge_under_the_recipe(write: Write) -> None:
    write(BASE, "base/one.py")
    write("_base_ = 'one.py'\nextra = dict(a=1)\n", "base/two.py")
    cfg = load_recipe(
        write(
            """
            _base_ = ["base/two.py"]
            log = dict(interval=5, hooks=[3])
            out = dict(_delete_=True, dir="b")
            fresh = dict(_delete_=True, x=dict(_delete_=True, y=1))
            seed = _base_.seed + 7
            extra = None
            """
        )
    )
    assert cfg.to_dict() == {
        "log": {"interval": 5, "level": "INFO", "hooks": [3]},
        "seed": 7,
        "out": {"dir": "b"},
        "extra": None,
        "fresh": {"x": {"y": 1}},
    }
    assert list(cfg) == ["log", "seed", "out", "extra", "fresh"]


def test_merging_agrees_with_mmengine(write: Write) -> None:
    write(BASE, "base.py")
    file = write(
        """
        _base_ = "base.py"
        log = dict(interval=_base_.seed, new=dict(a=(1, 2)))
        out = dict(_delete_=True, dir="b")
        seed = [1]
        """
    )
    assert load_recipe(file).to_dict() == Config.fromfile(file, lazy_import=False).to_dict()


def test_bases_that_clash(write: Write, clone: Path) -> None:
    write("x = 1\ny = 2\n", "a.py")
    write("y = 3\nx = 4\n", "b.py")
    with pytest.raises(ConfigError, match=r"recipe\.py:1: _base_ 'b\.py' assigns x, y, which another base assigns too"):
        load_recipe(write("_base_ = ['a.py', 'b.py']\n"))
    with pytest.raises(ConfigError, match=r"x is a dict, but its base has 1 \(int\) there; write _delete_=True"):
        load_recipe(write("_base_ = 'a.py'\nx = dict(z=1)\n"))
    assert load_recipe(write("_base_ = 'a.py'\nx = dict(_delete_=True, z=1)\n")).x == {"z": 1}
    write("_base_ = 'recipe.py'\n", "c.py")
    with pytest.raises(ConfigError, match=r"c\.py:1: _base_ 'recipe\.py' makes the recipe inherit from itself"):
        load_recipe(write("_base_ = 'c.py'\n"))


def test_errors_in_a_base_name_the_base(write: Write) -> None:
    write("x = 1\ny = z\n", "base.py")
    with pytest.raises(ConfigError, match=r"/base\.py:2: NameError"):
        load_recipe(write("_base_ = 'base.py'\n"))


def test_a_shipped_base_is_found_by_its_prefix(write: Write, clone: Path) -> None:
    assert load_recipe(write("_base_ = 'xrlhf::_base_/runtime.py'\n")).log_interval == 10
    with pytest.raises(ConfigError, match=r"for the shipped one write 'xrlhf::_base_/runtime\.py'"):
        load_recipe(write("_base_ = '_base_/runtime.py'\n"))


def test_importing_the_package_and_listing_stays_light() -> None:
    code = (
        "import sys, xrlhf.config, xrlhf.cli.list_cfg, xrlhf.cli.copy_cfg\n"
        "heavy = {'torch', 'mmengine', 'numpy', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
