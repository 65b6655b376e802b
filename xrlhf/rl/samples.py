"""What passes between the parts of reinforcement learning: prompts, the answers drawn for them, their rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from xrlhf.structures import Conversation

__all__ = ["PromptRow", "RewardSource", "Rollouts", "Sample"]


@dataclass(frozen=True)
class PromptRow:
    """A prompt that answers are drawn for.

    Args:
        prompt: Messages that end with a question, or plain text that is continued.
        prompt_ids: (P,) int32, as the policy reads it, up to where the answer begins.
        index: Position in the whole set of prompts: with the seed it decides what is drawn, so that the answers do
            not depend on which process draws them, or beside which others.
        meta: The row's other columns (a reference answer, tests, an id), for rewards that need them.
    """

    prompt: Conversation
    prompt_ids: np.ndarray
    index: int
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One answer that was drawn.

    Args:
        ids: (R,) int32, at least one, with the token that ended it where one did.
        logps: (R,) float32, the log-probability of each token under the distribution it was drawn from before
            temperature, top-p and top-k change it: what the policy itself says.
        text: The answer without control tokens.
        ending: ``"stop"`` where the model ended it, ``"length"`` where the tokens ran out.
    """

    ids: np.ndarray
    logps: np.ndarray
    text: str
    ending: Literal["stop", "length"]


class Rollouts(Protocol):
    """Draws answers to prompts."""

    def sample(self, rows: Sequence[PromptRow], k: int, *, key: int) -> list[list[Sample]]:
        """``k`` answers to each prompt, in order.

        Args:
            rows: The prompts.
            k: Answers to each, 1 or more.
            key: Seeds the draws together with each row's ``index`` and the answer's number: the same key gives the
                same random numbers.
        """
        ...


class RewardSource(Protocol):
    """Rewards answers."""

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        """(rows, K) float32: a reward for every answer, NaN where this source says nothing of it.

        Args:
            rows: The prompts.
            samples: K answers to each.

        Raises:
            RewardError: The source failed, after whatever retries it makes.
        """
        ...
