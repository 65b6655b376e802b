from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xrlhf.data.reasons import RowError
from xrlhf.evaluation.benchmarks.judgebench import JUDGEBENCH


def row(label: str = "A>B", source: str = "mmlu-pro-law", question: str = "Q", model: str = "m") -> dict[str, Any]:
    return {
        "pair_id": "u",
        "source": source,
        "question": question,
        "response_model": model,
        "response_A": "a",
        "response_B": "b",
        "label": label,
    }


def test_the_label_names_the_better_answer() -> None:
    answers = [JUDGEBENCH.read(row(label), "a:1").group.responses[0][0]["content"] for label in ("A>B", "B>A")]  # type: ignore[index]
    assert answers == ["a", "b"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("A=B"), "label is 'A=B'; expected 'A>B' or 'B>A'"),
        (row(source="gsm8k"), "source is 'gsm8k'; expected one that begins mmlu-pro"),
    ],
)
def test_bad_rows(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        JUDGEBENCH.read(bad, "a:1")


def test_scores_by_source_and_ties(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    """Four pairs: right, wrong, a tie labelled B>A, a tie labelled A>B. Strictly 1 of 4; the reference code says 2."""
    rows = [
        scored(JUDGEBENCH, row(question="1"), [1, 0]),
        scored(JUDGEBENCH, row(question="2", source="livebench-math"), [0, 1]),
        scored(JUDGEBENCH, row("B>A", question="3"), [1, 1]),
        scored(JUDGEBENCH, row("A>B", question="4"), [1, 1]),
    ]
    found = named(JUDGEBENCH.results(rows))
    assert found["all pairs"].value == 0.25
    assert found["all pairs, ties as in the reference code"].value == 0.5
    assert (found["mmlu-pro"].value, found["livebench-math"].value) == (pytest.approx(1 / 3), 0.0)
    assert found["livecodebench"].value is None


def test_response_models_stand_apart(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    rows = [
        scored(JUDGEBENCH, row(question="1", model="gpt-4o"), [1, 0]),
        scored(JUDGEBENCH, row(question="2", model="claude"), [0, 1]),
    ]
    found = named(JUDGEBENCH.results(rows))
    assert (found["all pairs"].value, found["gpt-4o: all pairs"].value, found["claude: all pairs"].value) == (0.5, 1, 0)
