"""JudgeBench: pairs of answers by one model, one of them objectively right.

Reference:
    Tan et al., JudgeBench: a benchmark for evaluating LLM-based judges, arXiv 2410.12784; ScalerLab/JudgeBench.
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
    choice_of,
    group_of_texts,
    mean_over,
    strict_accuracy,
)
from xrlhf.evaluation.estimates import Estimate

__all__ = ["JUDGEBENCH"]

_SOURCES = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
_COLUMNS = ("question", "response_A", "response_B", "label")
_SECOND = "B>A"


def _recognises(row: Mapping[str, Any], location: str) -> bool:
    return all(name in row for name in _COLUMNS)


def _read(row: Mapping[str, Any], location: str) -> BenchmarkRow:
    source = column(row, "source")
    subset = next((name for name in _SOURCES if isinstance(source, str) and source.startswith(name)), None)
    if subset is None:
        raise RowError(Reason.BAD_LABEL, f"source is {short(source)}; expected one that begins {', '.join(_SOURCES)}")
    label = column(row, "label")
    answers = [(name, column(row, name)) for name in ("response_A", "response_B")]
    if choice_of(label, "label", ("A>B", _SECOND)) == 1:
        answers.reverse()
    group = group_of_texts(column(row, "question"), "question", answers)
    details: dict[str, str | int] = {"label": label, "response_model": str(row.get("response_model", ""))}
    return BenchmarkRow(subset, group, (0, 1), str(row.get("pair_id", "")), location, details)


def _results(rows: Sequence[ScoredRow]) -> list[Estimate]:
    models = list(dict.fromkeys(str(row.details["response_model"]) for row in rows))
    results = _of_one("", rows)
    if len(models) > 1:
        # The published numbers are of one response model each.
        for model in models:
            results += _of_one(f"{model}: ", [row for row in rows if row.details["response_model"] == model])
    return results


def _of_one(prefix: str, rows: Sequence[ScoredRow]) -> list[Estimate]:
    parts = [strict_accuracy(prefix + name, [row for row in rows if row.subset == name]) for name in _SOURCES]
    overall = mean_over(
        f"{prefix}all pairs", rows, [float(row.scores[0] > row.scores[1]) for row in rows], note="a tie is wrong"
    )
    lenient = mean_over(
        f"{prefix}all pairs, ties as in the reference code",
        rows,
        [
            float(row.scores[0] > row.scores[1] or (row.scores[0] == row.scores[1] and row.details["label"] == _SECOND))
            for row in rows
        ],
        note="its reward judges answer B>A at a tie, so a tie is right wherever that is the label",
    )
    return [overall, *parts, lenient]


JUDGEBENCH = Benchmark(
    name="judgebench",
    title="JudgeBench",
    rule="share of pairs whose right answer scores strictly higher, over all pairs and by source",
    source="ScalerLab/JudgeBench, arXiv 2410.12784",
    recognises=_recognises,
    read=_read,
    results=_results,
    expected=dict.fromkeys(_SOURCES, 0),
)
