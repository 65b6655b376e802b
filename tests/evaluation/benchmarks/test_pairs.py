from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xrlhf.evaluation.benchmarks.pairs import PAIRS, pairs_benchmark
from xrlhf.evaluation.rows import format_map_fn

PAIR = {"prompt": "Q", "chosen": "good", "rejected": "bad"}


def test_layouts_of_score(scored: Callable[..., Any]) -> None:
    transcript = {"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"}
    for row in (PAIR, transcript, {"prompt": "Q", "responses": ["good", "bad"]}):
        read = PAIRS.read(row, "data/rows.jsonl:1")
        assert (read.ranks, read.subset) == ((0, 1), "rows.jsonl")


def test_equal_ratings_are_no_pair() -> None:
    row = {"prompt": "Q", "responses": ["a", "b", "c"], "ratings": [1, 5, 1]}
    read = PAIRS.read(row, "a:1")
    assert [answer[0]["content"] for answer in read.group.responses] == ["b", "a", "c"]  # type: ignore[index]
    assert read.ranks == (0, 1, 1)
    assert read.scored([1, 2, 3], [1, 1, 1]).pairs() == [(0, 1), (0, 2)]


def test_every_prompt_counts_the_same(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    """A pair that is right, and three answers 2 > 1 > 3 by score of which one pair of three is right: (1 + 1/3) / 2.

    Best of K: the list's top answer is its last one.
    """
    rows = [
        scored(PAIRS, PAIR, [1, 0], "a.jsonl:1"),
        scored(PAIRS, {"prompt": "R", "responses": ["x", "y", "z"]}, [2, 1, 3], "b.jsonl:1"),
    ]
    found = named(PAIRS.results(rows))
    assert found["all rows"].value == pytest.approx(2 / 3)
    assert (found["a.jsonl"].value, found["b.jsonl"].value) == (1.0, pytest.approx(1 / 3))
    assert found["mean of the subsets"].value == pytest.approx(2 / 3)
    assert found["best of K"].value == 0.0


def test_a_shared_top_counts_by_its_part(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    row = {"prompt": "R", "responses": ["x", "y", "z"]}
    assert named(PAIRS.results([scored(PAIRS, row, [2, 2, 1])]))["best of K"].value == 0.5


def test_a_column_names_the_subset() -> None:
    assert PAIRS.read({**PAIR, "subset": "cooking", "id": 3}, "a:1").subset == "cooking"


def test_a_named_format() -> None:
    row = {"system": "", "question": "Q", "chosen": "good", "rejected": "bad"}
    for name in ("orca_dpo_pairs", "orca_dpo_pairs_map_fn"):
        assert pairs_benchmark(format_map_fn(name)).read(row, "a:1").ranks == (0, 1)
