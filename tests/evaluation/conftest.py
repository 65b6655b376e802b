"""Puts tiny_models on the path of this folder's tests; rows with scores, and results by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from xrlhf.evaluation.benchmarks import Benchmark, ScoredRow
from xrlhf.evaluation.estimates import Estimate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@pytest.fixture
def scored() -> Callable[..., ScoredRow]:
    """Reads a raw row as a benchmark does and gives its answers scores; lengths are counted in words."""

    def make(
        benchmark: Benchmark, row: Mapping[str, Any], scores: Sequence[float], location: str = "rows.jsonl:1"
    ) -> ScoredRow:
        read = benchmark.read(row, location)
        assert len(scores) == len(read.group.responses)
        return read.scored(scores, [len(str(response[-1]["content"]).split()) for response in read.group.responses])

    return make


@pytest.fixture
def named() -> Callable[..., dict[str, Estimate]]:
    """All results of a benchmark by name, however deep they lie."""

    def collect(estimates: Sequence[Estimate]) -> dict[str, Estimate]:
        found: dict[str, Estimate] = {}
        for estimate in estimates:
            found[estimate.name] = estimate
            found |= collect([part for part, _ in estimate.parts])
        return found

    return collect
