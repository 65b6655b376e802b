"""Drawn answers as the rest of the project knows them: groups of responses to a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xrlhf.errors import ConfigError, RewardError
from xrlhf.rl.samples import PromptRow, Sample
from xrlhf.structures import Conversation, Group

__all__ = ["check_weight", "column_of", "group_of_samples", "place_of", "response_of", "reward_table"]


def response_of(prompt: Conversation, text: str) -> Conversation:
    """An answer as messages where the prompt is messages, else as the text that goes on."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def group_of_samples(row: PromptRow, samples: Sequence[Sample]) -> Group:
    """The answers to one prompt in the order in which they were drawn."""
    return Group(row.prompt, tuple(response_of(row.prompt, sample.text) for sample in samples), meta=row.meta)


def place_of(row: PromptRow, number: int) -> str:
    """Which answer a message speaks of; never what it says."""
    return f"answer {number + 1} to prompt {row.index}"


def check_weight(name: str, weight: float) -> float:
    """``weight``, if it can be multiplied with.

    Raises:
        ConfigError: It is not a finite number.
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) < float("inf"):
        raise ConfigError(f"the weight of reward {name!r} must be a finite number, got {weight!r}")
    return float(weight)


def column_of(row: PromptRow, column: str, reward: str) -> str:
    """The text of a column of a prompt's row.

    Args:
        row: The row.
        column: Its name.
        reward: The reward that asks, for messages.

    Raises:
        RewardError: The row lacks it, or it holds neither text nor a number.
    """
    value = row.meta.get(column)
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if value is None:
        found = ", ".join(sorted(map(str, row.meta))) or "no columns beside it"
        raise RewardError(f"reward {reward!r}: prompt {row.index} has no column {column!r}; it has {found}")
    raise RewardError(
        f"reward {reward!r}: column {column!r} of prompt {row.index} is {type(value).__name__}; expected text or a "
        "number"
    )


def reward_table(samples: Sequence[Sequence[Sample]], values: Sequence[Sequence[float]]) -> np.ndarray:
    """(rows, K) float32, from one list a prompt."""
    return np.array(values, dtype=np.float32).reshape(len(samples), len(samples[0]) if samples else 0)
