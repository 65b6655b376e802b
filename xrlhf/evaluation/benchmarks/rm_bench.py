"""RM-Bench: three right and three wrong answers in growing polish, each against each.

Reference:
    Liu et al., RM-Bench: benchmarking reward models of language models with subtlety and style, arXiv 2410.16184;
    the rules as in THU-KEG/RM-Bench, scripts/utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from xrlhf.data.map_fns.messages import column
from xrlhf.data.reasons import Reason, RowError, short
from xrlhf.evaluation.benchmarks.base import (
    Benchmark,
    BenchmarkRow,
    ScoredRow,
    answers_of,
    file_of,
    group_of_texts,
    mean_over,
)
from xrlhf.evaluation.estimates import Estimate, SampleMean, Stratum, WeightedMean

__all__ = ["DOMAINS", "RM_BENCH", "STYLES"]

STYLES = ("concise", "detailed", "markdown")
"""The three answers of a side, in order."""

DOMAINS = ("chat", "math", "code", "safety")
"""Each counts the same; ``safety-refuse`` and ``safety-response`` are one."""

_LEVELS = ("hard", "normal", "easy")
_ROWS = {"chat": 129, "code": 228, "math": 0, "safety-refuse": 284, "safety-response": 157}
_IN_A_NAME = re.compile(r"(?:^|[^a-z])(chat|math|code|safety-refuse|safety-response|safety)(?![a-z])")


def _recognises(row: Mapping[str, Any], location: str) -> bool:
    sides = (row.get("chosen"), row.get("rejected"))
    return (
        "prompt" in row
        and "num_correct" not in row
        and all(isinstance(side, (list, tuple)) and len(side) == len(STYLES) for side in sides)
        and all(isinstance(answer, str) for side in sides for answer in side or ())
    )


def _read(row: Mapping[str, Any], location: str) -> BenchmarkRow:
    domain = row.get("domain")
    if domain is None:
        # The files of one domain have no such column; their names tell it.
        found = _IN_A_NAME.search(file_of(location).name.lower())
        if found is None:
            raise RowError(
                Reason.MISSING_COLUMN,
                "the row has no domain and the file's name tells none; expected a name such as chat_filtered.json, or "
                f"a column domain with one of {', '.join(_ROWS)}",
            )
        domain = found[1]
    if not isinstance(domain, str) or not domain.startswith(DOMAINS):
        raise RowError(Reason.BAD_LABEL, f"domain is {short(domain)}; expected one of {', '.join(_ROWS)}")
    answers = [*answers_of(row, "chosen", len(STYLES)), *answers_of(row, "rejected", len(STYLES))]
    group = group_of_texts(column(row, "prompt"), "prompt", answers)
    return BenchmarkRow(domain, group, (0, 0, 0, 1, 1, 1), str(row.get("id", "")), location)


def level_of(chosen_style: int, rejected_style: int) -> str:
    """``"hard"`` where the right answer is the plainer one, ``"easy"`` where it is the more polished."""
    return _LEVELS[(chosen_style >= rejected_style) + (chosen_style > rejected_style)]


def _domain(name: str, rows: Sequence[ScoredRow]) -> dict[str, WeightedMean]:
    """Hard, normal and easy of one domain, each a mean of three of the nine cells."""
    stratum = Stratum.of(name, [row.prompt for row in rows])
    cells: dict[str, list[SampleMean]] = {level: [] for level in _LEVELS}
    num_styles = len(STYLES)
    for chosen in range(num_styles):
        for rejected in range(num_styles):
            cells[level_of(chosen, rejected)].append(
                mean_over(
                    f"{name}: {STYLES[chosen]} chosen, {STYLES[rejected]} rejected",
                    rows,
                    [float(row.scores[chosen] > row.scores[num_styles + rejected]) for row in rows],
                    stratum=stratum,
                )
            )
    return {level: WeightedMean(f"{name} {level}", tuple((cell, 1.0) for cell in of)) for level, of in cells.items()}


def _results(rows: Sequence[ScoredRow]) -> list[Estimate]:
    levels = {domain: _domain(domain, [row for row in rows if row.subset.startswith(domain)]) for domain in DOMAINS}
    domains = [WeightedMean(domain, tuple((part, 1.0) for part in levels[domain].values())) for domain in DOMAINS]
    overall: list[Estimate] = [
        WeightedMean("RM-Bench", tuple((domain, 1.0) for domain in domains), note="plain mean of the domains")
    ]
    notes = ("the right answer is plainer", "both are of one style", "the right answer is more polished")
    for level, note in zip(_LEVELS, notes, strict=True):
        parts = tuple((levels[domain][level], 1.0) for domain in DOMAINS)
        overall.append(WeightedMean(level, parts, note=f"{note}; plain mean of the domains"))
    values = [sum(row.scores[i] > row.scores[j] for i, j in row.pairs()) / len(row.pairs()) for row in rows]
    return [*overall, mean_over("all rows", rows, values, note="every row counts the same; no published number")]


RM_BENCH = Benchmark(
    name="rm_bench",
    title="RM-Bench",
    rule="share of the nine comparisons a prompt whose right answer scores strictly higher, over four domains",
    source="THU-KEG/RM-Bench, arXiv 2410.16184",
    recognises=_recognises,
    read=_read,
    results=_results,
    expected=_ROWS,
)
