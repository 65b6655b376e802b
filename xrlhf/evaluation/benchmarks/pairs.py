"""Plain files of pairs or ranked answers, in any layout of ``xrlhf score`` or read by a map function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xrlhf.data.reasons import Reason, RowError
from xrlhf.evaluation.benchmarks.base import Benchmark, BenchmarkRow, ScoredRow, file_of, mean_over
from xrlhf.evaluation.estimates import Estimate, WeightedMean
from xrlhf.evaluation.rows import scorable_group
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group

__all__ = ["PAIRS", "pairs_benchmark"]

MapFn = Callable[[Mapping[str, Any]], Group]

_RATINGS = "ratings"


def pairs_benchmark(map_fn: MapFn | None = None) -> Benchmark:
    """The benchmark of rows whose answers stand in order of preference.

    Args:
        map_fn: Reads a row; by default its columns tell the layout, and ``ratings`` beside ``responses`` its order.
    """

    def recognises(row: Mapping[str, Any], location: str) -> bool:
        try:
            _read(row, location, map_fn)
        except RowError as error:
            return error.reason is not Reason.MISSING_COLUMN
        return True

    return Benchmark(
        name="pairs",
        title="Pairs",
        rule="share of a row's pairs whose better answer scores strictly higher, every row counting the same",
        source="the file itself",
        recognises=recognises,
        read=lambda row, location: _read(row, location, map_fn),
        results=_results,
    )


def _read(row: Mapping[str, Any], location: str, map_fn: MapFn | None) -> BenchmarkRow:
    if map_fn is not None:
        group = map_fn(row)
    elif row.get(_RATINGS) is not None and row.get("responses") is not None:
        group = MAP_FNS.get("ranked_map_fn")(row)
    else:
        group = scorable_group(row)
    if len(group.responses) < 2:
        raise RowError(Reason.MISSING_COLUMN, "the row holds one answer; expected two or more, the best first")
    subset = row.get("subset")
    return BenchmarkRow(
        subset if isinstance(subset, str) and subset else file_of(location).name,
        group,
        _ranks(group),
        str(row.get("id", "")),
        location,
    )


def _ranks(group: Group) -> tuple[int, ...]:
    """Places in the order of preference; equal ratings share one."""
    if group.ratings is None:
        return tuple(range(len(group.responses)))
    levels = sorted(set(group.ratings), reverse=True)
    return tuple(levels.index(rating) for rating in group.ratings)


def _results(rows: Sequence[ScoredRow]) -> list[Estimate]:
    subsets = list(dict.fromkeys(row.subset for row in rows))
    parts = [_accuracy(subset, [row for row in rows if row.subset == subset]) for subset in subsets]
    results: list[Estimate] = [_accuracy("all rows", rows)]
    if len(parts) > 1:
        means = tuple((part, 1.0) for part in parts)
        results.append(WeightedMean("mean of the subsets", means, note="every subset counts the same"))
    lists = [row for row in rows if len(row.scores) > 2]
    if lists:
        values = [_best_of_k(row) for row in lists]
        results.append(mean_over("best of K", lists, values, note="rows of three or more: the top one is best"))
    return results


def _best_of_k(row: ScoredRow) -> float:
    """Share of the answers with the highest score that are best ones."""
    largest = max(row.scores)
    top = [rank for rank, score in zip(row.ranks, row.scores, strict=True) if score == largest]
    return top.count(0) / len(top)


def _accuracy(name: str, rows: Sequence[ScoredRow]) -> Estimate:
    values = [
        sum(row.scores[i] > row.scores[j] for i, j in pairs) / len(pairs) for row in rows if (pairs := row.pairs())
    ]
    return mean_over(name, [row for row in rows if row.pairs()], values)


PAIRS = pairs_benchmark()
"""Files whose columns tell their layout."""
