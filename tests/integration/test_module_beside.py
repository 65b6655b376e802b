"""A recipe whose map function lies in a module beside it, through the command line, called from another folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from xrlhf.config import load_recipe

MODULE = """
from xrlhf.data.map_fns import text_pair_map_fn
from xrlhf.data.reasons import Reason, RowError


def without_blue_map_fn(row):
    if "blue" in row["prompt"]:
        raise RowError(Reason.DIFFERENT_TURNS, "blue")
    return text_pair_map_fn(row)
"""

EXTRA = """
from maps_beside import without_blue_map_fn

train_dataloader["dataset"]["sources"][0]["map_fn"] = without_blue_map_fn
train_dataloader["dataset"]["num_workers"] = 2
train_cfg["max_steps"] = 2
"""


@pytest.mark.slow
def test_every_process_finds_the_module(
    tmp_path: Path,
    tiny_recipe_in: Callable[..., Path],
    xrlhf_in: Callable[..., CompletedProcess[str]],
) -> None:
    """Two processes that train, two that tokenise, a copy of the recipe and the recipe that the run left behind."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    (home / "maps_beside.py").write_text(MODULE)
    recipe = tiny_recipe_in(home, extra=EXTRA)
    trained = xrlhf_in(away, "train", recipe, environment={"NPROC_PER_NODE": "2"})
    assert trained.returncode == 0, trained.stdout + trained.stderr
    report = json.loads((home / "tiny" / "data_report.json").read_text())
    (train,) = report["train"].values()
    # Every third prompt of the 64 is blue.
    assert (train["num_rows"], train["num_groups_used"]) == (64, 43)

    left_behind = home / "tiny" / "tiny.py"
    assert load_recipe(left_behind).module_folders == [str(home)]
    copied = xrlhf_in(away, "copy-cfg", recipe, "mine")
    assert copied.returncode == 0, copied.stderr
    for file in (left_behind, away / "mine" / "tiny_copy.py"):
        checked = xrlhf_in(away, "check-dataset", file)
        assert checked.returncode == 0, checked.stderr
        assert "train_dataloader: 43 groups" in checked.stdout
