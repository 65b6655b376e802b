"""Which benchmark a file is of: by name, or by the columns of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrlhf.errors import ConfigError, DataError
from xrlhf.evaluation.benchmarks.base import Benchmark
from xrlhf.evaluation.benchmarks.judgebench import JUDGEBENCH
from xrlhf.evaluation.benchmarks.llmbar import LLMBAR
from xrlhf.evaluation.benchmarks.pairs import PAIRS
from xrlhf.evaluation.benchmarks.reward_bench import REWARD_BENCH
from xrlhf.evaluation.benchmarks.reward_bench_2 import REWARD_BENCH_2
from xrlhf.evaluation.benchmarks.rm_bench import RM_BENCH
from xrlhf.evaluation.rows import LAYOUTS

__all__ = ["BENCHMARKS", "find_benchmark", "recognise"]

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (REWARD_BENCH, REWARD_BENCH_2, RM_BENCH, LLMBAR, JUDGEBENCH, PAIRS)
}
"""All benchmarks by name; the first that recognises a row takes its file, so what takes anything stands last."""

_MAX_COLUMNS = 12


def find_benchmark(name: str) -> Benchmark:
    """The benchmark called ``name``.

    Raises:
        ConfigError: There is none.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"--benchmark {name}: no benchmark has this name; known are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def recognise(row: Mapping[str, Any], location: str) -> Benchmark:
    """The benchmark that a row is of.

    Args:
        row: Of a file whose rows are alike.
        location: Where it stands: names of files and folders count.

    Raises:
        DataError: The columns fit none.
    """
    for benchmark in BENCHMARKS.values():
        if benchmark.recognises(row, location):
            return benchmark
    names = ", ".join(map(str, list(row)[:_MAX_COLUMNS])) + (", ..." if len(row) > _MAX_COLUMNS else "")
    pairs = [layout for layout in LAYOUTS if "rejected" in layout or "responses" in layout]
    raise DataError(
        f"{location}: the columns {names or '(none)'} are of no benchmark ({', '.join(BENCHMARKS)}) and hold no pair "
        f"({'; '.join(pairs)}); --format names the map function that reads such rows"
    )
