"""Public reward-model benchmarks, one module each: how rows are read and how scores become the published numbers."""

from __future__ import annotations

from xrlhf.evaluation.benchmarks.base import Benchmark, BenchmarkRow, ScoredRow
from xrlhf.evaluation.benchmarks.finding import BENCHMARKS, find_benchmark, recognise
from xrlhf.evaluation.benchmarks.pairs import pairs_benchmark

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkRow",
    "ScoredRow",
    "find_benchmark",
    "pairs_benchmark",
    "recognise",
]
