"""Commits of hub names, from a cache laid out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from xrlhf.engine.pinning import pin_revisions

MODEL, DATA = "a" * 40, "d" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("XRLHF_HUB", raising=False)
    for folder, commit in (("models--o--m", MODEL), ("datasets--o--d", DATA)):
        (tmp_path / folder / "refs").mkdir(parents=True)
        (tmp_path / folder / "refs" / "main").write_text(commit)


def recipe_with(**options: Any) -> Config:
    source = {"type": "xrlhf.data.sources.HubSource", "path": "o/d", "split": "train", **options}
    return Config(
        {
            "pretrained": "o/m",
            "tokenizer": {"type": "xrlhf.models.load_tokenizer", "path": "o/m", **options},
            "model": {
                "type": "xrlhf.models.RewardModel",
                "backbone": {"type": "xrlhf.models.backbone_from_pretrained", "path": "o/m", **options},
            },
            "train_dataloader": {"dataset": {"sources": [{"source": source, "map_fn": "f.g"}]}, "betas": (1, 2)},
        }
    )


def test_names_get_the_commits_they_stood_for() -> None:
    recipe = recipe_with()
    before = recipe.to_dict()
    pinned, lines = pin_revisions(recipe)
    assert recipe.to_dict() == before
    expected = recipe_with()
    expected.tokenizer.revision = MODEL
    expected.model.backbone.revision = MODEL
    expected.train_dataloader.dataset.sources[0].source.revision = DATA
    assert pinned == expected.to_dict()
    # One line a name, though tokenizer and model are of the same one.
    assert lines == [
        f"model 'o/m' has no commit in the recipe; this run reads {MODEL}: revision='{MODEL}' pins it",
        f"data set 'o/d' has no commit in the recipe; this run reads {DATA}: revision='{DATA}' pins it",
    ]


def test_what_is_pinned_stays_as_it_is() -> None:
    recipe = recipe_with(revision="e" * 40)
    assert pin_revisions(recipe) == (recipe.to_dict(), [])


def test_a_map_function_inside_another_gets_no_source() -> None:
    recipe = recipe_with(revision="e" * 40)
    recipe.train_dataloader.dataset.sources[0].map_fn = {"type": "f.chosen_only", "map_fn": "f.g"}
    assert pin_revisions(recipe) == (recipe.to_dict(), [])


def test_a_commit_that_nobody_knows() -> None:
    """A tag that the cache does not have, and ModelScope, which names no commits."""
    recipe = recipe_with(revision="v2")
    pinned, lines = pin_revisions(recipe)
    assert pinned == recipe.to_dict()
    assert lines == [
        f"{what} has no commit in the recipe, and huggingface does not say which one was read: set revision= to pin it"
        for what in ("model 'o/m'", "data set 'o/d'")
    ]
    recipe = recipe_with(hub="modelscope")
    pinned, lines = pin_revisions(recipe)
    assert pinned == recipe.to_dict()
    assert lines[0] == (
        "model 'o/m' has no commit in the recipe, and modelscope does not say which one was read: set revision= to pin "
        "it"
    )


def test_sources_in_short() -> None:
    sources = [{"source": "o/d", "map_fn": "f.g"}, {"source": {"path": "o/d", "split": "x"}, "map_fn": "f.g"}]
    pinned, lines = pin_revisions(Config({"dataset": {"sources": sources}}))
    assert [item["source"] for item in pinned["dataset"]["sources"]] == [
        {"path": "o/d", "revision": DATA},
        {"path": "o/d", "split": "x", "revision": DATA},
    ]
    assert len(lines) == 1


def test_folders_and_other_dicts_are_left_alone(tmp_path: Path) -> None:
    recipe = Config(
        {
            "tokenizer": {"type": "xrlhf.models.load_tokenizer", "path": str(tmp_path)},
            "hook": {"type": "CheckpointHook", "path": "o/m"},
            "group": {"path": "o/m"},
            "data": {"source": "rows.jsonl", "map_fn": "f.g"},
        }
    )
    assert pin_revisions(recipe) == (recipe.to_dict(), [])
