"""Data that the loss cannot learn from is refused before the first step, in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from xrlhf.config import load_recipe
from xrlhf.data.practice import PracticeSource, practice_rated_map_fn, practice_tokenizer
from xrlhf.engine.build import build_parts
from xrlhf.engine.dry_run import dry_run
from xrlhf.engine.launch import Ranks
from xrlhf.errors import ConfigError
from xrlhf.losses import BinaryLoss, DavidsonLoss, L2Penalty, PlackettLuceLoss, RankingLoss, RegressionLoss
from xrlhf.models import AttributeHead

pytestmark = pytest.mark.usefixtures("package_logger")

WEIGHTS = {"content": 1.0, "manner": 1.0}


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path]) -> Config:
    """Pairs of texts without ratings."""
    return load_recipe(tiny_recipe())


@pytest.fixture
def rated(recipe: Config) -> Callable[..., Config]:
    """The same model on rated practice answers."""

    def make(num_responses: Any = 1, attributes: Any = (), **model: Any) -> Config:
        source = {"type": PracticeSource, "kind": "rated", "num_groups": 40, "num_responses": num_responses}
        recipe.tokenizer = {"type": practice_tokenizer}
        recipe.model.backbone.update(vocab_size=1024, max_position_embeddings=512)
        for key, value in model.items():
            recipe.model[key] = value
        for section in ("train_dataloader", "val_dataloader"):
            recipe[section].dataset.update(
                sources=[{"source": source, "map_fn": practice_rated_map_fn, "name": "rows"}],
                max_length=512,
                attributes=list(attributes),
            )
        return recipe

    return make


@pytest.mark.parametrize("loss", [RegressionLoss, BinaryLoss])
def test_pairs_without_ratings_cannot_feed_a_loss_on_targets(recipe: Config, loss: Any) -> None:
    recipe.model.loss = {"type": loss}
    message = (
        rf"^train_dataloader: {loss.__name__} has nothing to learn from in any of the 64 groups of \S+pairs\.jsonl "
        "that were looked at: it needs a rating .* choose a map function that reads them, or .* RankingLoss"
    )
    with pytest.raises(ConfigError, match=message):
        build_parts(recipe, Ranks())
    with pytest.raises(ConfigError, match=message):
        list(dry_run(recipe, Ranks()))


@pytest.mark.parametrize("loss", [RankingLoss, PlackettLuceLoss, DavidsonLoss])
def test_single_responses_cannot_feed_a_loss_on_preferences(rated: Callable[..., Config], loss: Any) -> None:
    message = f"train_dataloader: {loss.__name__} has nothing to learn from .* two or more responses.* RegressionLoss"
    with pytest.raises(ConfigError, match=message):
        build_parts(rated(loss={"type": loss}), Ranks())


@pytest.mark.parametrize("loss", [RegressionLoss, BinaryLoss, RankingLoss, PlackettLuceLoss, DavidsonLoss])
def test_data_that_fits_is_taken(rated: Callable[..., Config], loss: Any) -> None:
    assert build_parts(rated(3, loss={"type": loss}), Ranks()).val_loader is not None


def test_ties_are_fine_for_a_loss_on_ties_and_said_of_others(
    rated: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="xrlhf"):
        build_parts(rated(2, loss={"type": DavidsonLoss}), Ranks())
    assert "nothing to learn" not in caplog.text
    with caplog.at_level(logging.WARNING, logger="xrlhf"):
        build_parts(rated(2, loss={"type": RankingLoss}), Ranks())
    assert "of the 40 groups of rows that were looked at give RankingLoss nothing to learn from" in caplog.text


def test_data_that_a_loss_in_penalty_learns_from_is_taken(rated: Callable[..., Config]) -> None:
    made = rated(loss={"type": RankingLoss}, penalty=[{"type": L2Penalty}, {"type": RegressionLoss}])
    assert len(build_parts(made, Ranks()).train_loader.dataset) == 40


def test_ratings_outside_of_the_range_are_refused(rated: Callable[..., Config]) -> None:
    message = r"RegressionLoss does not fit the 40 groups of rows .*: a rating is \S+, outside of rating_range=\(0, 4\)"
    with pytest.raises(ConfigError, match=message):
        build_parts(rated(loss={"type": RegressionLoss, "rating_range": (0, 4)}), Ranks())


def test_labels_of_one_kind_are_refused(rated: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"BinaryLoss does not fit .* are not above threshold=100"):
        build_parts(rated(loss={"type": BinaryLoss, "threshold": 100}), Ranks())


@pytest.mark.parametrize("attributes", [(), ("manner", "content"), ("content",)])
def test_attributes_must_be_those_of_the_head(rated: Callable[..., Config], attributes: tuple[str, ...]) -> None:
    made = rated(
        attributes=attributes, loss={"type": RegressionLoss}, head={"type": AttributeHead, "weights": dict(WEIGHTS)}
    )
    with pytest.raises(ConfigError) as error:
        build_parts(made, Ranks())
    assert str(error.value) == (
        f"train_dataloader.dataset.attributes is {attributes!r}, but the head of the model predicts ('content', "
        "'manner'): set train_dataloader.dataset.attributes to the same names in the same order"
    )


def test_the_validation_set_must_read_them_too(rated: Callable[..., Config]) -> None:
    made = rated(
        attributes=WEIGHTS, loss={"type": RegressionLoss}, head={"type": AttributeHead, "weights": dict(WEIGHTS)}
    )
    assert build_parts(made, Ranks()).model.head.names == ("content", "manner")
    made.val_dataloader.dataset.attributes = []
    with pytest.raises(ConfigError, match=r"^val_dataloader\.dataset\.attributes is \(\), but the head"):
        build_parts(made, Ranks())
