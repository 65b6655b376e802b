"""Sums in words: the number that an answer ends with (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from xrlhf.errors import RewardError
from xrlhf.registry import REWARDS
from xrlhf.rl.rewards.answers import check_weight, column_of, reward_table
from xrlhf.rl.samples import PromptRow, Sample

__all__ = ["GSM8KReward", "final_number", "marked_number"]

_MARK = "####"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# A sign counts where nothing stands before it that it could be subtracted from.
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\].])[-\u2212+])?(?:[$\u20ac\u00a3]\s?)?(?P<inner>(?<=[$\u20ac\u00a3])[-\u2212])?"
    rf"(?P<digits>{_DIGITS})(?:\s?/\s?(?P<below>\d+))?"
)
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")


def marked_number(text: str) -> Fraction | None:
    """The first number behind the last ``####``; None where there is no mark or no number behind it."""
    before, mark, behind = text.rpartition(_MARK)
    del before
    return next(iter(_numbers(behind)), None) if mark else None


def final_number(text: str) -> Fraction | None:
    """The number that an answer gives as its result: behind the last ``####``, else in the last ``\\boxed{}``, else
    the last number of all; None where there is none."""
    marked = marked_number(text)
    if marked is not None:
        return marked
    boxed = _BOXED.findall(text)
    return next(reversed(_numbers(boxed[-1]) if boxed and _numbers(boxed[-1]) else _numbers(text)), None)


def _numbers(text: str) -> list[Fraction]:
    found = []
    for match in _NUMBER.finditer(text):
        number = Fraction(match["digits"].replace(",", ""))
        if match["below"] and int(match["below"]):
            number /= int(match["below"])
        signs = [sign.strip() for sign in (match["sign"], match["inner"]) if sign]
        negative = any(sign in ("-", "\u2212") for sign in signs)
        found.append(-number if negative else number)
    return found


@REWARDS.register_module()
class GSM8KReward:
    """One reward for the right number, another for any other.

    Numbers are compared, not texts: ``1,234``, ``$1234``, ``1234.00`` and ``1234 apples`` are the same. The right one
    stands behind ``####`` in the column, as in openai/gsm8k, or is all that the column holds.

    Args:
        column: Column of the prompts' rows that holds the right answer.
        strict: Whether the number has to stand behind ``####`` in the model's answer as well. Else the last
            ``\\boxed{}`` counts where there is no mark, and else the last number.
        correct: The reward of the right number.
        wrong: The reward of any other, and of none.
        weight: What it counts in the sum of all rewards; any finite number.
        name: What the log calls it.

    Raises:
        ConfigError: ``weight`` is not a finite number.
    """

    def __init__(
        self,
        *,
        column: str = "answer",
        strict: bool = False,
        correct: float = 1.0,
        wrong: float = 0.0,
        weight: float = 1.0,
        name: str = "gsm8k",
    ) -> None:
        self.name = name
        self.weight = check_weight(name, weight)
        self.column = column
        self.strict = strict
        self.correct = correct
        self.wrong = wrong

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        """(rows, K) float32.

        Raises:
            RewardError: A row does not have the column, or no number in it.
        """
        read = marked_number if self.strict else final_number
        return reward_table(
            samples,
            [
                [self.correct if read(sample.text) == wanted else self.wrong for sample in drawn]
                for wanted, drawn in zip(map(self._wanted, rows), samples, strict=True)
            ],
        )

    def _wanted(self, row: PromptRow) -> Fraction:
        text = column_of(row, self.column, self.name)
        found = marked_number(text) if _MARK in text else _all_of(text)
        if found is None:
            raise RewardError(
                f"reward {self.name!r}: column {self.column!r} of prompt {row.index} has no number behind {_MARK!r}, "
                "and is no number either"
            )
        return found


def _all_of(text: str) -> Fraction | None:
    """The number that a text is, less blanks and a full stop at its end; None where it is anything else."""
    plain = text.strip().rstrip(".")
    match = _NUMBER.fullmatch(plain)
    return _numbers(plain)[0] if match else None
