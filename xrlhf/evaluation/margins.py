"""How scores and margins are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xrlhf.evaluation.benchmarks.base import ScoredRow
from xrlhf.evaluation.pair_table import PairTable

__all__ = ["Histogram", "Margins", "Moments", "histograms", "margins"]

_NUM_BINS = 24
_QUANTILES = (5, 25, 50, 75, 95)
_SMALL_MARGIN = 0.1


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (over N) of some numbers, and how many there are."""

    count: int
    mean: float
    std: float

    @classmethod
    def of(cls, values: np.ndarray) -> Moments | None:
        return cls(len(values), float(values.mean()), float(values.std())) if len(values) else None


@dataclass(frozen=True)
class Margins:
    """The differences in score of all pairs, each pair counting once.

    Args:
        margin: Their mean and spread.
        quantiles: By name, ``"5"`` to ``"95"`` per cent.
        small_share: Share below 0.1 in absolute value.
        wrong_mean: Mean size of the margin of pairs ranked wrong: how confident errors are; None without one.
        chosen: Scores of the best answers.
        rejected: Scores of the others that a better one stands against.
    """

    margin: Moments
    quantiles: dict[str, float]
    small_share: float
    wrong_mean: float | None
    chosen: Moments
    rejected: Moments


@dataclass(frozen=True)
class Histogram:
    """Counts of two sets of numbers in the same bins.

    Args:
        edges: Borders of the bins, one more than bins.
        counts: By name, a count a bin.
    """

    edges: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]


def margins(rows: Sequence[ScoredRow], pairs: PairTable) -> Margins | None:
    """Distribution of margins and scores; None without pairs."""
    if not len(pairs):
        return None
    chosen, rejected = _sides(rows)
    wrong = pairs.margin[pairs.margin < 0]
    whole, of_chosen, of_rejected = Moments.of(pairs.margin), Moments.of(chosen), Moments.of(rejected)
    assert whole is not None
    assert of_chosen is not None
    assert of_rejected is not None
    return Margins(
        margin=whole,
        quantiles={str(q): float(np.percentile(pairs.margin, q)) for q in _QUANTILES},
        small_share=float(np.mean(np.abs(pairs.margin) < _SMALL_MARGIN)),
        wrong_mean=float(-wrong.mean()) if len(wrong) else None,
        chosen=of_chosen,
        rejected=of_rejected,
    )


def histograms(rows: Sequence[ScoredRow], pairs: PairTable) -> dict[str, Histogram]:
    """Histograms of ``scores`` (chosen and rejected) and of ``margins`` (right and wrong)."""
    chosen, rejected = _sides(rows)
    return {
        "scores": _histogram({"chosen": chosen, "rejected": rejected}),
        "margins": _histogram(
            {"right": pairs.margin[pairs.margin > 0], "not right": pairs.margin[pairs.margin <= 0]}, border=0.0
        ),
    }


def _sides(rows: Sequence[ScoredRow]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the answers of the best rank, and of all others."""
    chosen: list[float] = []
    rejected: list[float] = []
    for row in rows:
        for score, rank in zip(row.scores, row.ranks, strict=True):
            (chosen if rank == 0 else rejected).append(score)
    return np.array(chosen), np.array(rejected)


def _histogram(values: dict[str, np.ndarray], border: float | None = None) -> Histogram:
    """Equal bins over the range of all values; with ``border``, a bin edge lies there."""
    together = np.concatenate(list(values.values()))
    if not len(together):
        return Histogram((), dict.fromkeys(values, ()))
    low, high = float(together.min()), float(together.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    edges: np.ndarray = np.linspace(low, high, _NUM_BINS + 1)
    if border is not None and low < border < high:
        width = (high - low) / _NUM_BINS
        first, last = int(np.ceil((border - low) / width)), int(np.ceil((high - border) / width))
        edges = border + width * np.arange(-first, last + 1)
        # Rounding must not leave the outermost values outside.
        edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    counts = {name: tuple(int(n) for n in np.histogram(of_name, edges)[0]) for name, of_name in values.items()}
    return Histogram(tuple(float(edge) for edge in edges), counts)
