"""Whether a data set holds what the model's loss learns from, asked before the first step."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from xrlhf.data.dataset import GroupDataset
from xrlhf.data.packing import pack
from xrlhf.errors import ConfigError
from xrlhf.losses.objective import Objective
from xrlhf.models.actor_critic import ActorCritic
from xrlhf.models.policy_model import PolicyModel

__all__ = ["check_attributes", "check_draws_answers", "check_objective", "check_targets"]

logger = logging.getLogger("xrlhf")

_SAMPLE = 256


def check_attributes(model: Any, section: str, dataset: GroupDataset) -> None:
    """Refuse a data set that reads other attributes than the model predicts.

    Raises:
        ConfigError: It does, or reads them in another order.
    """
    predicted = tuple(getattr(getattr(model, "head", None), "names", ()))
    if predicted and dataset.encoder.attributes != predicted:
        raise ConfigError(
            f"{section}.dataset.attributes is {dataset.encoder.attributes!r}, but the head of the model predicts "
            f"{predicted!r}: set {section}.dataset.attributes to the same names in the same order"
        )


def check_draws_answers(model: Any, section: str) -> None:
    """Refuse prompts for a model that learns from given answers.

    Raises:
        ConfigError: It does.
    """
    if not isinstance(model, ActorCritic):
        raise ConfigError(
            f"{section}.dataset holds prompts alone, and a {type(model).__name__} learns from given answers: set "
            "model.type to ActorCritic, or the data set's to GroupDataset"
        )


def check_targets(model: Any, section: str, dataset: GroupDataset) -> None:
    """Refuse a data set for a policy that does not say which tokens are to be learnt, or that draws its own answers.

    Raises:
        ConfigError: It does not, or does.
    """
    if isinstance(model, ActorCritic):
        raise ConfigError(f"an ActorCritic draws its own answers: set {section}.dataset.type to PromptDataset")
    if isinstance(model, PolicyModel) and dataset.encoder.targets is None:
        raise ConfigError(
            f"{section}.dataset does not say which tokens the policy learns to write: set {section}.dataset.targets to "
            "'answer' (the response), 'assistant' (every turn of the assistant) or 'all'"
        )


def check_objective(model: Any, section: str, dataset: GroupDataset) -> None:
    """Refuse training data that the model's loss learns nothing from, as far as a sample of each source can tell.

    Args:
        model: The model; only one whose loss says what it can use is looked at.
        section: Name of the dataloader's section, for messages.
        dataset: Its data set.

    Raises:
        ConfigError: No group in the sample of a source is usable, or a target is outside of the loss's domain.
    """
    check_attributes(model, section, dataset)
    check_targets(model, section, dataset)
    loss = getattr(model, "loss", None)
    if not isinstance(loss, Objective):
        return
    end = 0
    for name, size in zip(dataset.names, dataset.sizes, strict=True):
        start, end = end, end + size
        places = np.unique(np.linspace(start, end - 1, min(size, _SAMPLE)).astype(np.int64))
        batch = pack([dataset[int(place)] for place in places])
        targets = batch.ratings if isinstance(model, PolicyModel) else model.head.targets(batch)
        is_usable = loss.usable(batch.response_mask, targets)
        for penalty in getattr(model, "penalties", ()):
            # Losses may share the data: comparisons for one, ratings for another.
            if isinstance(penalty, Objective):
                is_usable = is_usable | penalty.usable(batch.response_mask, batch.ratings)
        usable = int(is_usable.sum())
        looked_at = f"{len(places)} groups of {name} that were looked at"
        if not usable:
            raise ConfigError(
                f"{section}: {type(loss).__name__} has nothing to learn from in any of the {looked_at}: {loss.needs}"
            )
        if problem := getattr(loss, "problem", lambda *_: None)(batch.response_mask, targets):
            raise ConfigError(f"{section}: {type(loss).__name__} does not fit the {looked_at}: {problem}")
        if usable < len(places):
            logger.warning(
                "%s: %d of the %s give %s nothing to learn from and count 0 in the loss",
                section,
                len(places) - usable,
                looked_at,
                type(loss).__name__,
            )
