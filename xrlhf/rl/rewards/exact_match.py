"""Answers that have to be just so."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from xrlhf.errors import ConfigError
from xrlhf.registry import REWARDS
from xrlhf.rl.rewards.answers import check_weight, column_of, reward_table
from xrlhf.rl.samples import PromptRow, Sample

__all__ = ["ExactMatchReward"]


@REWARDS.register_module()
class ExactMatchReward:
    """One reward for the right text, another for any other.

    Text is compared without blanks at its ends, and with every run of blanks and line breaks as one blank.

    Args:
        column: Column of the prompts' rows that holds the right answer.
        pattern: Regular expression whose first group, of its last match in the answer, is compared in place of the
            whole answer, such as ``r"<answer>(.*?)</answer>"``; an answer without a match is wrong. None compares all
            of it.
        ignore_case: Whether capitals count as small letters.
        correct: The reward of the right answer.
        wrong: The reward of any other.
        weight: What it counts in the sum of all rewards; any finite number.
        name: What the log calls it.

    Raises:
        ConfigError: ``pattern`` is no regular expression or has no group, or ``weight`` is not a finite number.
    """

    def __init__(
        self,
        *,
        column: str = "answer",
        pattern: str | None = None,
        ignore_case: bool = False,
        correct: float = 1.0,
        wrong: float = 0.0,
        weight: float = 1.0,
        name: str = "exact_match",
    ) -> None:
        self.name = name
        self.weight = check_weight(name, weight)
        self.column = column
        self.ignore_case = ignore_case
        self.correct = correct
        self.wrong = wrong
        try:
            self._pattern = None if pattern is None else re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ConfigError(f"reward {name!r}: pattern {pattern!r} is no regular expression: {error}") from error
        if self._pattern is not None and not self._pattern.groups:
            raise ConfigError(f"reward {name!r}: pattern {pattern!r} has no group (...) that says what is compared")

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        """(rows, K) float32.

        Raises:
            RewardError: A row does not have the column.
        """
        return reward_table(
            samples,
            [
                [self._reward(sample.text, self._plain(column_of(row, self.column, self.name))) for sample in drawn]
                for row, drawn in zip(rows, samples, strict=True)
            ],
        )

    def _reward(self, text: str, wanted: str) -> float:
        if self._pattern is not None:
            found = [match[1] for match in self._pattern.finditer(text)]
            if not found or found[-1] is None:
                return self.wrong
            text = found[-1]
        return self.correct if self._plain(text) == wanted else self.wrong

    def _plain(self, text: str) -> str:
        text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text
