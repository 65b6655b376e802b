"""RewardBench 1, with the prior sets that its leaderboard adds.

Reference:
    Lambert et al., RewardBench: evaluating reward models for language modeling, arXiv 2403.13787; section counts and
    weights as in allenai/reward-bench, rewardbench/constants.py and analysis/get_benchmark_results.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xrlhf.data.map_fns.messages import column
from xrlhf.data.reasons import Reason, RowError, short
from xrlhf.evaluation.benchmarks.base import (
    Benchmark,
    BenchmarkRow,
    ScoredRow,
    file_of,
    group_of_texts,
    mean_over,
    strict_accuracy,
)
from xrlhf.evaluation.estimates import Estimate, WeightedMean

__all__ = ["PRIOR_SETS", "REWARD_BENCH", "SECTIONS"]

_CODE = ("cpp", "go", "java", "js", "python", "rust")

SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    # math-prm has 447 rows; its weight makes mathematics count as much as the six programming languages together.
    "Reasoning": {"math-prm": 984, **{f"hep-{language}": 164 for language in _CODE}},
}
"""Subsets of each section, each with its weight: a fixed number, whatever the number of rows at hand."""

PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
"""Older test sets; their plain mean is a fifth section of half the weight."""

_MATH_ROWS = 447
_ROWS = {
    **{name: count for section in SECTIONS.values() for name, count in section.items()},
    "math-prm": _MATH_ROWS,
    **dict.fromkeys(PRIOR_SETS, 0),
}
_OTHER_PRIOR_SETS = ("pku_better", "pku_safer")
_COLUMNS = ("prompt", "chosen", "rejected")


def _recognises(row: Mapping[str, Any], location: str) -> bool:
    if not all(name in row for name in _COLUMNS) or isinstance(row["chosen"], list):
        return False
    return _subset(row, location) is not None


def _subset(row: Mapping[str, Any], location: str) -> str | None:
    """By the column ``subset``; the prior sets have none, and their files' names tell."""
    subset = row.get("subset")
    if subset is not None:
        return subset if isinstance(subset, str) and subset in (*_ROWS, *_OTHER_PRIOR_SETS) else None
    name = file_of(location).name
    return next((prior for prior in (*PRIOR_SETS, *_OTHER_PRIOR_SETS) if name.startswith(prior)), None)


def _read(row: Mapping[str, Any], location: str) -> BenchmarkRow:
    subset = _subset(row, location)
    if subset is None:
        raise RowError(
            Reason.BAD_LABEL, f"subset is {short(row.get('subset'))}; expected one of the subsets of RewardBench"
        )
    answers = [(name, column(row, name)) for name in ("chosen", "rejected")]
    group = group_of_texts(column(row, "prompt"), "prompt", answers)
    return BenchmarkRow(subset, group, (0, 1), str(row.get("id", "")), location)


def _results(rows: Sequence[ScoredRow]) -> list[Estimate]:
    def accuracy(subset: str) -> Estimate:
        return strict_accuracy(subset, [row for row in rows if row.subset == subset])

    sections = [
        WeightedMean(name, tuple((accuracy(subset), float(weight)) for subset, weight in subsets.items()))
        for name, subsets in SECTIONS.items()
    ]
    prior = WeightedMean("Prior Sets", tuple((accuracy(name), 1.0) for name in PRIOR_SETS), note="plain mean")
    results: list[Estimate] = [
        WeightedMean(
            "RewardBench (four sections)",
            tuple((section, 1.0) for section in sections),
            note="mean of the sections, without prior sets",
        )
    ]
    if prior.value is not None:
        parts = (*((section, 2.0) for section in sections), (prior, 1.0))
        results.append(WeightedMean("RewardBench (with prior sets)", parts, note="weights 2, 2, 2, 2 and 1"))
    present = [row for row in rows if row.subset in _ROWS and row.subset not in PRIOR_SETS]
    if present:
        values = [float(row.scores[0] > row.scores[1]) for row in present]
        results.append(mean_over("all rows", present, values, note="every row counts the same; no published number"))
    other = [name for name in _OTHER_PRIOR_SETS if any(row.subset == name for row in rows)]
    return [*results, *(accuracy(name) for name in other)]


REWARD_BENCH = Benchmark(
    name="reward_bench",
    title="RewardBench",
    rule="share of pairs whose chosen answer scores strictly higher, over subsets with fixed weights, over sections",
    source="allenai/reward-bench, arXiv 2403.13787",
    recognises=_recognises,
    read=_read,
    results=_results,
    expected=_ROWS,
)
