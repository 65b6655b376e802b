"""How much of a model's ranking is the length of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xrlhf.evaluation.benchmarks.base import ScoredRow
from xrlhf.evaluation.metrics import wilson_interval
from xrlhf.evaluation.pair_table import PairTable

__all__ = ["LengthBias", "Share", "length_bias"]

_MATCHED_RATIO = 0.9


@dataclass(frozen=True)
class Share:
    """A share of pairs with its 95 % interval (Wilson, over prompts).

    Args:
        num_pairs: Pairs it is taken over.
        value: The share, every row counting the same; None without pairs.
        low: Lower bound.
        high: Upper bound.
    """

    num_pairs: int
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, pairs: PairTable, values: np.ndarray) -> Share:
        value = pairs.mean(values)
        if value is None:
            return cls(0)
        num_prompts = pairs.num_prompts()
        return cls(len(pairs), value, *wilson_interval(min(value * num_prompts, num_prompts), num_prompts))


@dataclass(frozen=True)
class LengthBias:
    """Length of the answers, in tokens of their own text, against their scores. Ties of scores count one half.

    Args:
        chosen_is_longer: Accuracy on pairs whose better answer is longer.
        chosen_is_shorter: Accuracy on pairs whose better answer is shorter.
        same_length: Accuracy on pairs of equally long answers.
        longer_is_chosen: Share of the pairs of unequal length whose longer answer is the better one: what always
            preferring the longer answer would get.
        longer_scores_higher: Share of the same pairs whose longer answer scores higher.
        gap: Accuracy where the better answer is longer, minus accuracy where it is shorter.
        balanced_accuracy: Mean of these two accuracies: as if length said nothing about which answer is better.
        matched_accuracy: Accuracy on pairs whose lengths differ by less than a tenth of the longer one.
        adjusted_accuracy: Accuracy after ``slope`` times the difference of the log-lengths is taken off each margin.
        slope: Score that a model gives for a unit of the natural logarithm of 1 + tokens, within rows and with the
            data's own preference held fixed (least squares).
        correlation: Spearman correlation of score and length over all answers.
        correlation_within: Pearson correlation of score and log-length, both less their mean over the row.
        correlation_partial: The same after what the data's preference explains is taken off both.
    """

    chosen_is_longer: Share
    chosen_is_shorter: Share
    same_length: Share
    longer_is_chosen: Share
    longer_scores_higher: Share
    gap: float | None
    balanced_accuracy: float | None
    matched_accuracy: Share
    adjusted_accuracy: Share
    slope: float | None
    correlation: float | None
    correlation_within: float | None
    correlation_partial: float | None


def length_bias(rows: Sequence[ScoredRow], pairs: PairTable) -> LengthBias:
    """Length bias over scored rows.

    Args:
        rows: The rows.
        pairs: Their pairs.
    """
    difference = pairs.chosen_length - pairs.rejected_length
    longer, shorter = pairs.where(difference > 0), pairs.where(difference < 0)
    unequal = pairs.where(difference != 0)
    same = pairs.where(difference == 0)
    on_longer, on_shorter = Share.of(longer, longer.right), Share.of(shorter, shorter.right)
    both = on_longer.value is not None and on_shorter.value is not None
    chosen_longer = (unequal.chosen_length > unequal.rejected_length).astype(np.float64)
    higher = np.where(chosen_longer == 1, unequal.right, 1 - unequal.right)

    shortest = np.minimum(pairs.chosen_length, pairs.rejected_length)
    longest = np.maximum(pairs.chosen_length, pairs.rejected_length)
    matched = pairs.where(shortest > _MATCHED_RATIO * longest)

    score, length, preferred = _within_rows(rows)
    partial_score, partial_length = _without(score, preferred), _without(length, preferred)
    slope = _slope(partial_score, partial_length)
    log_ratio = np.log1p(pairs.chosen_length) - np.log1p(pairs.rejected_length)
    adjusted = PairTable(**{**vars(pairs), "margin": pairs.margin - (slope or 0.0) * log_ratio})
    all_scores = np.array([value for row in rows for value in row.scores])
    all_lengths = np.array([value for row in rows for value in row.lengths], dtype=np.float64)
    return LengthBias(
        chosen_is_longer=on_longer,
        chosen_is_shorter=on_shorter,
        same_length=Share.of(same, same.right),
        longer_is_chosen=Share.of(unequal, chosen_longer),
        longer_scores_higher=Share.of(unequal, higher),
        gap=on_longer.value - on_shorter.value if both else None,  # type: ignore[operator]
        balanced_accuracy=(on_longer.value + on_shorter.value) / 2 if both else None,  # type: ignore[operator]
        matched_accuracy=Share.of(matched, matched.right),
        adjusted_accuracy=Share.of(adjusted, adjusted.right),
        slope=slope,
        correlation=correlation(ranks(all_scores), ranks(all_lengths)),
        correlation_within=correlation(score, length),
        correlation_partial=correlation(partial_score, partial_length),
    )


def _within_rows(rows: Sequence[ScoredRow]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, log-length and preference (minus the rank) of every answer, each less its mean over the row."""
    columns: list[list[float]] = [[], [], []]
    for row in rows:
        values: tuple[Any, ...] = (row.scores, np.log1p(row.lengths), [-float(rank) for rank in row.ranks])
        for column, of_row in zip(columns, values, strict=True):
            numbers = np.array(of_row, dtype=np.float64)
            column.extend(numbers - numbers.mean())
    return tuple(np.array(column) for column in columns)  # type: ignore[return-value]


def _without(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """What a line through zero on ``known`` leaves of ``values``."""
    scale = float(known @ known)
    return values - (float(values @ known) / scale) * known if scale else values


def _slope(values: np.ndarray, on: np.ndarray) -> float | None:
    scale = float(on @ on)
    return float(values @ on) / scale if scale > 1e-12 else None


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson correlation; None where it is not defined."""
    if len(one) < 2:
        return None
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / scale if scale > 1e-12 else None


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
