"""``xrlhf train --dry-run --gpus N`` on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xrlhf.cli.main import main


def test_a_plan(tiny_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ["--gpus", "8", "--gpu-memory", "80", "--gpu-tflops", "400", "--link", "50"]
    assert main(["train", str(tiny_recipe()), "--dry-run", *given]) == 0
    out = capsys.readouterr().out
    assert "memory of one device of 8" in out
    assert out.rstrip().splitlines()[-1].startswith("take --strategy ")
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "2"], "--gpus plans a run and starts none: add --dry-run"),
        (["--dry-run", "--gpu-memory", "80"], "describe devices of a plan: add --dry-run --gpus N"),
        (["--dry-run", "--gpus", "0"], "--gpus must be at least 1, got 0"),
    ],
)
def test_what_makes_no_plan(
    tiny_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["train", str(tiny_recipe()), *arguments]) == 2
    assert message in capsys.readouterr().err
