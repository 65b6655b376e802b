"""From scored rows to the numbers of a report, as plain values that JSON holds."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

from xrlhf.evaluation.benchmark_data import ReadFile
from xrlhf.evaluation.benchmark_scores import BenchmarkScores
from xrlhf.evaluation.benchmarks import Benchmark, ScoredRow
from xrlhf.evaluation.calibration import calibration
from xrlhf.evaluation.comparison import agreement, matched_rows
from xrlhf.evaluation.estimates import Bootstrap, Estimate
from xrlhf.evaluation.length_bias import length_bias
from xrlhf.evaluation.margins import histograms, margins
from xrlhf.evaluation.pair_table import PairTable, pair_table
from xrlhf.evaluation.report.model_run import ModelRun
from xrlhf.progress import track
from xrlhf.version import __version__

__all__ = ["SCHEMA", "SCHEMA_VERSION", "build_report"]

SCHEMA = "xrlhf.eval"
"""What kind of file it is."""

SCHEMA_VERSION = 1
"""Raised when a key changes its meaning or goes; new keys do not raise it."""

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def build_report(
    runs: Sequence[ModelRun],
    benchmarks: Sequence[Benchmark],
    files: Sequence[tuple[str, ReadFile]],
    *,
    command: str = "",
    bootstrap: Bootstrap | None = None,
) -> dict[str, Any]:
    """All numbers of a report.

    Args:
        runs: The models; the first is what others are compared with.
        benchmarks: Which were run, in order.
        files: Name of the benchmark and file, for each file.
        command: The command line.
        bootstrap: Behind the intervals.
    """
    bootstrap = Bootstrap() if bootstrap is None else bootstrap
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "versions": {
            "xrlhf": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "bootstrap": {"num_resamples": bootstrap.num_resamples, "seed": bootstrap.seed},
        "models": [{"name": run.name, **run.about} for run in runs],
        "data": [{"benchmark": name, **asdict(file)} for name, file in files],
        "benchmarks": [
            _benchmark(benchmark, runs, bootstrap) for benchmark in track(benchmarks, "metrics", len(benchmarks))
        ],
    }


def _benchmark(benchmark: Benchmark, runs: Sequence[ModelRun], bootstrap: Bootstrap) -> dict[str, Any]:
    present = [run for run in runs if benchmark.name in run.scores]
    return {
        "name": benchmark.name,
        "title": benchmark.title,
        "rule": benchmark.rule,
        "source": benchmark.source,
        "results": [
            {"model": run.name, **_result(benchmark, run.scores[benchmark.name], bootstrap)} for run in present
        ],
        "comparisons": [_comparison(benchmark, present[0], run, bootstrap) for run in present[1:]],
    }


def _result(benchmark: Benchmark, scores: BenchmarkScores, bootstrap: Bootstrap) -> dict[str, Any]:
    rows = scores.rows
    pairs = pair_table(rows)
    found = Counter(row.subset for row in rows)
    return {
        "num_scored": len(rows),
        "num_at_limit": scores.num_at_limit,
        "left_out": {
            "num_rows": len(scores.left_out),
            "reasons": dict(Counter(row.reason for row in scores.left_out)),
            "rows": [asdict(row) for row in scores.left_out],
        },
        "subsets": dict(found),
        "missing_subsets": [name for name in benchmark.expected if not found[name]],
        "incomplete_subsets": [
            {"subset": name, "num_scored": found[name], "num_expected": count}
            for name, count in benchmark.expected.items()
            if count and found[name] and found[name] != count
        ],
        "scores": [_tree(estimate, bootstrap) for estimate in benchmark.results(rows)],
        "pairs": _pairs(pairs),
        "calibration": _plain(calibration(pairs)),
        "length": _plain(length_bias(rows, pairs)) if len(pairs) else None,
        "margins": _plain(margins(rows, pairs)),
        "histograms": {name: asdict(histogram) for name, histogram in histograms(rows, pairs).items()},
        "examples": [asdict(example) for example in scores.examples],
    }


def _tree(estimate: Estimate, bootstrap: Bootstrap, weight: float = 1.0) -> dict[str, Any]:
    interval = bootstrap.interval(estimate)
    return {
        "name": estimate.name,
        "value": estimate.value,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "interval": interval.method if interval else None,
        "num_rows": estimate.num_rows,
        "weight": weight,
        "note": estimate.note,
        "without_rows": [part.name for part, _ in estimate.parts if part.value is None],
        "parts": [_tree(part, bootstrap, of_part) for part, of_part in estimate.parts],
    }


def _pairs(pairs: PairTable) -> dict[str, Any]:
    """Plain counts over all pairs, whatever the benchmark's own rule is."""
    strict, ties = (pairs.margin > 0).astype(float), (pairs.margin == 0).astype(float)
    return {
        "num_pairs": len(pairs),
        "num_prompts": pairs.num_prompts(),
        "num_ties": int(ties.sum()),
        "accuracy": pairs.mean(strict),
        "accuracy_ties_half": pairs.mean(pairs.right),
    }


def _comparison(benchmark: Benchmark, first: ModelRun, second: ModelRun, bootstrap: Bootstrap) -> dict[str, Any]:
    """The second model against the first, over the rows that both scored."""
    all_first, all_second = first.scores[benchmark.name].rows, second.scores[benchmark.name].rows
    one, other = matched_rows(all_first, all_second)
    return {
        "first": first.name,
        "second": second.name,
        "num_rows": len(one),
        "num_only_first": len(all_first) - len(one),
        "num_only_second": len(all_second) - len(other),
        "scores": _differences(benchmark, one, other, bootstrap),
        "agreement": _plain(agreement(one, other)),
    }


def _differences(
    benchmark: Benchmark, first: list[ScoredRow], second: list[ScoredRow], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    result = []
    # A part may stand in several trees; it is listed where it comes first.
    seen: set[str] = set()
    pairs = [
        both
        for one, other in zip(benchmark.results(first), benchmark.results(second), strict=True)
        for both in _flat(one, other, 0)
    ]
    for one, other, depth in pairs:
        if one.value is None or other.value is None or one.name in seen:
            continue
        seen.add(one.name)
        interval, p_value = bootstrap.difference(other, one)
        result.append(
            {
                "name": one.name,
                "depth": depth,
                "num_rows": one.num_rows,
                "first": one.value,
                "second": other.value,
                "difference": other.value - one.value,
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
                "p_value": p_value,
            }
        )
    return result


def _flat(one: Estimate, other: Estimate, depth: int) -> list[tuple[Estimate, Estimate, int]]:
    below = [
        found
        for (part, _), (of_other, _) in zip(one.parts, other.parts, strict=True)
        for found in _flat(part, of_other, depth + 1)
    ]
    return [(one, other, depth), *below]


def _plain(value: Any) -> Any:
    return None if value is None else asdict(value)
