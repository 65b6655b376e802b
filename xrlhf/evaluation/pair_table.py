"""Every pair of a better and a worse answer of scored rows, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xrlhf.evaluation.benchmarks.base import ScoredRow

__all__ = ["PairTable", "pair_table"]


@dataclass(frozen=True)
class PairTable:
    """N pairs, of which several may belong to one row.

    Args:
        margin: (N,) float64, score of the better answer minus score of the worse one.
        chosen_length: (N,) int64, tokens of the better answer.
        rejected_length: (N,) int64, tokens of the worse answer.
        weight: (N,) float64, 1 over the number of pairs of the row: every row counts the same.
        row: (N,) int64, which row a pair is of.
        prompt: (N,) int64, a number for each different prompt.
        better: (N,) int64, the place of the better answer in its row.
        worse: (N,) int64, the place of the worse answer in its row.
    """

    margin: np.ndarray
    chosen_length: np.ndarray
    rejected_length: np.ndarray
    weight: np.ndarray
    row: np.ndarray
    prompt: np.ndarray
    better: np.ndarray
    worse: np.ndarray

    def __len__(self) -> int:
        return len(self.margin)

    @property
    def right(self) -> np.ndarray:
        """(N,) float64: 1 where the better answer scores higher, one half at equal scores, else 0."""
        return (self.margin > 0) + 0.5 * (self.margin == 0)

    def where(self, mask: np.ndarray) -> PairTable:
        """The pairs where ``mask`` is True, with the weights they have."""
        return PairTable(*(column[mask] for column in vars(self).values()))

    def mean(self, values: np.ndarray) -> float | None:
        """Weighted mean of a value a pair; None without pairs."""
        return float(np.average(values, weights=self.weight)) if len(self) else None

    def num_prompts(self) -> int:
        return len(np.unique(self.prompt))


def pair_table(rows: Sequence[ScoredRow]) -> PairTable:
    """The pairs of all rows, in order."""
    margin: list[float] = []
    lengths: list[tuple[int, int]] = []
    weight: list[float] = []
    places: list[tuple[int, int, int, int]] = []
    numbers: dict[str, int] = {}
    for number, row in enumerate(rows):
        prompt = numbers.setdefault(row.prompt, len(numbers))
        pairs = row.pairs()
        for better, worse in pairs:
            margin.append(row.scores[better] - row.scores[worse])
            lengths.append((row.lengths[better], row.lengths[worse]))
            weight.append(1 / len(pairs))
            places.append((number, prompt, better, worse))
    tokens = np.array(lengths, dtype=np.int64).reshape(-1, 2)
    place = np.array(places, dtype=np.int64).reshape(-1, 4)
    return PairTable(
        margin=np.array(margin, dtype=np.float64),
        chosen_length=tokens[:, 0],
        rejected_length=tokens[:, 1],
        weight=np.array(weight, dtype=np.float64),
        row=place[:, 0],
        prompt=place[:, 1],
        better=place[:, 2],
        worse=place[:, 3],
    )
