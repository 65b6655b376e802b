"""Two models on the same rows: differences, their significance, and where the models agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xrlhf.evaluation.benchmarks import ScoredRow
from xrlhf.evaluation.length_bias import correlation, ranks
from xrlhf.evaluation.pair_table import pair_table

__all__ = ["Agreement", "agreement", "matched_rows", "mcnemar"]


@dataclass(frozen=True)
class Agreement:
    """Where two models agree, over rows that both scored. A row is right when all its pairs are.

    Args:
        num_rows: Rows.
        both_right: Rows that both rank right.
        only_first: Rows that the first model alone ranks right.
        only_second: Rows that the second model alone ranks right.
        both_wrong: Rows that neither ranks right.
        mcnemar_p: Two-sided p-value of McNemar's exact test of equal accuracy over rows.
        same_order: Share of the pairs that both models put in the same order.
        margin_correlation: Spearman correlation of the margins; None where it is not defined.
    """

    num_rows: int
    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    mcnemar_p: float
    same_order: float
    margin_correlation: float | None


def matched_rows(first: Sequence[ScoredRow], second: Sequence[ScoredRow]) -> tuple[list[ScoredRow], list[ScoredRow]]:
    """The rows that both hold, in the order of ``first``; rows that are repeated are matched one by one."""
    places = dict(zip(_keys(second), second, strict=True))
    found = [(row, places[key]) for key, row in zip(_keys(first), first, strict=True) if key in places]
    return [one for one, _ in found], [other for _, other in found]


def _keys(rows: Sequence[ScoredRow]) -> list[tuple[str, str, int]]:
    seen: Counter[tuple[str, str]] = Counter()
    keys = []
    for row in rows:
        content = (row.subset, row.content)
        keys.append((*content, seen[content]))
        seen[content] += 1
    return keys


def agreement(first: Sequence[ScoredRow], second: Sequence[ScoredRow]) -> Agreement | None:
    """Agreement over matched rows; None where no row has a pair."""
    one, other = pair_table(first), pair_table(second)
    if not len(one):
        return None
    right = np.array([[_all_right(a), _all_right(b)] for a, b in zip(first, second, strict=True) if a.pairs()])
    only_first = int((right[:, 0] & ~right[:, 1]).sum())
    only_second = int((~right[:, 0] & right[:, 1]).sum())
    return Agreement(
        num_rows=len(right),
        both_right=int(right.all(axis=1).sum()),
        only_first=only_first,
        only_second=only_second,
        both_wrong=int((~right).all(axis=1).sum()),
        mcnemar_p=mcnemar(only_first, only_second),
        same_order=float(np.average(np.sign(one.margin) == np.sign(other.margin), weights=one.weight)),
        margin_correlation=correlation(ranks(one.margin), ranks(other.margin)),
    )


def _all_right(row: ScoredRow) -> bool:
    return all(row.scores[i] > row.scores[j] for i, j in row.pairs())


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test.

    If both models are right equally often, each row that one of them alone ranks right is the first's or the second's
    with probability one half: the smaller count has a binomial tail.

    Args:
        only_first: Rows that the first alone ranks right.
        only_second: Rows that the second alone ranks right.

    Reference:
        McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
        Psychometrika 12 (1947), 153-157.
    """
    total = only_first + only_second
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2)
        for k in range(min(only_first, only_second) + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))
