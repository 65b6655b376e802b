from __future__ import annotations

from typing import Any

import pytest

from xrlhf.errors import ConfigError, DataError
from xrlhf.evaluation.benchmarks import BENCHMARKS, find_benchmark, recognise

ROWS: dict[str, dict[str, Any]] = {
    "reward_bench": {"prompt": "2+2?", "chosen": "4", "rejected": "5", "subset": "math-prm", "id": 7},
    "reward_bench_2": {"prompt": "Q", "chosen": ["4"], "rejected": ["5", "6", "7"], "num_correct": 1},
    "rm_bench": {"prompt": "Q", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "subset": "alpacaeval"},
    "llmbar": {"input": "Q", "output_1": "a", "output_2": "b", "label": 2},
    "judgebench": {"question": "Q", "response_A": "a", "response_B": "b", "label": "B>A", "source": "mmlu-pro-law"},
    "pairs": {"prompt": "Q", "chosen": "a", "rejected": "b", "subset": "cooking"},
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_takes_its_rows_and_no_other(name: str) -> None:
    assert recognise(ROWS[name], "rows.jsonl:1").name == name
    takers = [other for other, benchmark in BENCHMARKS.items() if benchmark.recognises(ROWS[name], "rows.jsonl:1")]
    assert takers[0] == name
    assert set(takers) <= {name, "pairs"}


@pytest.mark.parametrize("row", [{"question": "Q"}, {"prompt": "Q", "response": "a"}, {"text": "a"}, {}])
def test_columns_of_nothing(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the columns .* are of no benchmark \(reward_bench, "):
        recognise(row, "rows.jsonl:1")


def test_names() -> None:
    assert find_benchmark("llmbar").title == "LLMBar"
    with pytest.raises(
        ConfigError, match="--benchmark rewardbench: no benchmark has this name; known are reward_bench"
    ):
        find_benchmark("rewardbench")
