from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from xrlhf.cli.copy_cfg import copy_cfg
from xrlhf.cli.list_cfg import list_cfg
from xrlhf.config import load_recipe, shipped
from xrlhf.errors import ConfigError

app = typer.Typer()
app.command()(list_cfg)
app.command()(copy_cfg)
runner = CliRunner()


@pytest.fixture(autouse=True)
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with two shipped recipes."""
    folder = tmp_path / "xrlhf" / "_configs"
    for name, text in {
        "_base_/runtime.py": "interval = 10\n",
        "reward/tiny_reward.py": '"""A tiny reward model.\n\nMore."""\n_base_ = "../_base_/runtime.py"\n',
        "flat.py": "x = 1\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(shipped, "PACKAGE_DIR", tmp_path / "xrlhf")
    return folder


def test_list_cfg() -> None:
    assert runner.invoke(app, ["list-cfg"]).output == "flat\nreward/tiny_reward  A tiny reward model.\n"
    assert runner.invoke(app, ["list-cfg", "-p", "tiny"]).output == "reward/tiny_reward  A tiny reward model.\n"
    assert runner.invoke(app, ["list-cfg", "--pattern", "f*"]).output == "flat\n"


def test_list_cfg_without_a_match() -> None:
    result = runner.invoke(app, ["list-cfg", "-p", "flatt"])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "no shipped recipe matches 'flatt'; nearest: 'flat'"


def test_copy_cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = runner.invoke(app, ["copy-cfg", "tiny_reward", str(tmp_path / "mine")])
    copy = tmp_path / "mine" / "tiny_reward_copy.py"
    assert result.output == f"wrote {copy}\nrun it with: xrlhf train {copy}\n"
    assert load_recipe(copy).interval == 10
    monkeypatch.chdir(tmp_path)
    assert runner.invoke(app, ["copy-cfg", "flat"]).output.startswith("wrote flat_copy.py\n")


def test_help_has_an_example() -> None:
    assert "Example: xrlhf list-cfg -p reward" in runner.invoke(app, ["list-cfg", "--help"]).output
    assert "Example: xrlhf copy-cfg" in runner.invoke(app, ["copy-cfg", "--help"]).output
