"""LLMBar: which of two outputs follows the instruction.

Reference:
    Zeng et al., Evaluating large language models at evaluating instruction following, arXiv 2310.07641;
    princeton-nlp/LLMBar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xrlhf.data.map_fns.messages import column
from xrlhf.data.reasons import Reason, RowError
from xrlhf.evaluation.benchmarks.base import (
    Benchmark,
    BenchmarkRow,
    ScoredRow,
    choice_of,
    file_of,
    group_of_texts,
    mean_over,
    strict_accuracy,
)
from xrlhf.evaluation.estimates import Estimate, WeightedMean

__all__ = ["LLMBAR"]

_ROWS = {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}
_COLUMNS = ("input", "output_1", "output_2", "label")


def _recognises(row: Mapping[str, Any], location: str) -> bool:
    return all(name in row for name in _COLUMNS)


def _read(row: Mapping[str, Any], location: str) -> BenchmarkRow:
    better = choice_of(column(row, "label"), "label", (1, 2))
    answers = [(name, column(row, name)) for name in ("output_1", "output_2")]
    if better == 1:
        answers.reverse()
    group = group_of_texts(column(row, "input"), "input", answers)
    return BenchmarkRow(_subset(row, location), group, (0, 1), str(row.get("id", "")), location)


def _subset(row: Mapping[str, Any], location: str) -> str:
    """By the column ``subset``, or by a folder or file name, the nearest to the row first."""
    path = file_of(location)
    for name in (str(row.get("subset", "")), path.stem, *(parent.name for parent in path.parents)):
        for subset in _ROWS:
            if subset.casefold() in name.casefold():
                return subset
    raise RowError(
        Reason.MISSING_COLUMN,
        f"neither a column subset nor a folder or file name tells the subset; expected one of {', '.join(_ROWS)}",
    )


def _results(rows: Sequence[ScoredRow]) -> list[Estimate]:
    parts = [strict_accuracy(subset, [row for row in rows if row.subset == subset]) for subset in _ROWS]
    adversarial = WeightedMean(
        "Adversarial", tuple((part, 1.0) for part in parts[1:]), note="plain mean of the four adversarial subsets"
    )
    values = [float(row.scores[0] > row.scores[1]) for row in rows]
    return [parts[0], adversarial, mean_over("all rows", rows, values, note="every row counts the same")]


LLMBAR = Benchmark(
    name="llmbar",
    title="LLMBar",
    rule="share of rows whose labelled output scores strictly higher, by subset",
    source="princeton-nlp/LLMBar, arXiv 2310.07641",
    recognises=_recognises,
    read=_read,
    results=_results,
    expected=_ROWS,
)
