"""What the tests of recipes share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from xrlhf.config import shipped

# Recipes and tests import recipe_parts by its name, as a user imports a module of his own.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe below tmp_path and returns its path."""

    def write_recipe(text: str, name: str = "recipe.py") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
        return file

    return write_recipe


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with three shipped recipes; returns its configs folder."""
    root = tmp_path / "clone"
    package = root / "xrlhf"
    package.mkdir(parents=True)
    (root / "setup.py").touch()
    configs = root / "configs"
    for name, text in {
        "_base_/runtime.py": "log_interval = 10\nhooks = dict(timer=dict(interval=5))\n",
        "reward/tiny_reward.py": (
            '"""A tiny reward model.\n\nxrlhf train configs/reward/tiny_reward.py\n"""\n'
            '_base_ = "../_base_/runtime.py"\nlr = 1e-4\noptimizer = dict(lr=lr)\n'
        ),
        "dpo/tiny_dpo.py": '_base_ = ["../_base_/runtime.py"]\nbeta = 0.1\n',
        "flat.py": '"""No folder."""\n_base_ = "_base_/runtime.py"\nx = 1\n',
    }.items():
        (configs / name).parent.mkdir(parents=True, exist_ok=True)
        (configs / name).write_text(text)
    monkeypatch.setattr(shipped, "PACKAGE_DIR", package)
    return configs
