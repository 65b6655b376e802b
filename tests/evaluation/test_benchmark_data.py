from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from xrlhf.errors import DataError
from xrlhf.evaluation.benchmark_data import read_benchmarks
from xrlhf.evaluation.benchmarks import find_benchmark

LLMBAR = {"input": "Q", "output_1": "a", "output_2": "b", "label": 1}
PAIR = {"prompt": "Q", "chosen": "good", "rejected": "bad"}


def write(file: Path, rows: Sequence[Any]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def test_files_are_gathered_by_benchmark(tmp_path: Path) -> None:
    """A folder of two LLMBar subsets and a file of pairs; expected subsets that are absent or short are named."""
    write(tmp_path / "llmbar" / "Natural" / "dataset.jsonl", [LLMBAR, LLMBAR])
    write(tmp_path / "llmbar" / "Adversarial" / "Manual" / "dataset.jsonl", [LLMBAR])
    pairs = write(tmp_path / "pairs.jsonl", [PAIR])
    bar, plain = read_benchmarks([str(tmp_path / "llmbar"), pairs])
    assert (bar.benchmark.name, [row.subset for row in bar.rows]) == ("llmbar", ["Manual", "Natural", "Natural"])
    assert bar.missing_subsets() == ["Neighbor", "GPTInst", "GPTOut"]
    assert bar.incomplete_subsets() == ["Natural: 2 of 100 rows", "Manual: 1 of 46 rows"]
    assert [(file.num_rows, len(file.digest)) for file in bar.files] == [(1, 32), (2, 32)]
    assert (plain.benchmark.name, plain.missing_subsets()) == ("pairs", [])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "Q"}], r"rows\.jsonl:1: the columns question are of no benchmark"),
        (
            [{**LLMBAR, "subset": "Natural", "label": 0}],
            r"rows\.jsonl:1: label is 0; expected 1 or 2 \(LLMBar\); --skip-",
        ),
        ([PAIR, {"prompt": "Q", "chosen": "good"}], r"rows\.jsonl:2: found prompt, chosen; expected one of"),
        ([PAIR, "{"], r"rows\.jsonl:2: "),
        ([""], r"rows\.jsonl: zero rows"),
    ],
)
def test_what_stops_reading(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_benchmarks([write(tmp_path / "rows.jsonl", rows)])
    assert "\n" not in str(caught.value)


def test_bad_rows_are_named_when_asked_to_skip_them(tmp_path: Path) -> None:
    rows = ["{", {"prompt": "Q", "chosen": "good"}, PAIR]
    (data,) = read_benchmarks([write(tmp_path / "rows.jsonl", [rows[2], *rows])], skip_bad=True)
    assert len(data.rows) == 2
    assert [(row.location.rpartition(":")[2], row.reason) for row in data.left_out] == [
        ("2", "not-json"),
        ("3", "missing-column"),
    ]


def test_a_file_of_bad_rows_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 2 rows can be read; the first: "):
        read_benchmarks([write(tmp_path / "rows.jsonl", ["not json", "not json"])], skip_bad=True)
    bad = {**LLMBAR, "label": 7}
    with pytest.raises(DataError, match=r"label is 7; expected 1 or 2 .no row of LLMBar could be read."):
        read_benchmarks([write(tmp_path / "natural.jsonl", [bad])], skip_bad=True)


def test_a_named_benchmark_decides(tmp_path: Path) -> None:
    """RewardBench's columns under a subset of one's own: recognised as pairs, refused as RewardBench."""
    file = write(tmp_path / "rows.jsonl", [{**PAIR, "subset": "own"}])
    assert read_benchmarks([file])[0].benchmark.name == "pairs"
    with pytest.raises(DataError, match="subset is 'own'; expected one of the subsets of RewardBench"):
        read_benchmarks([file], benchmark=find_benchmark("reward_bench"))


def test_a_file_named_twice(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [PAIR])
    with pytest.raises(DataError, match="named twice in --data"):
        read_benchmarks([file, str(tmp_path)])
