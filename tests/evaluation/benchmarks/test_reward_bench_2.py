from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrlhf.data.reasons import RowError
from xrlhf.evaluation.benchmarks.reward_bench_2 import REWARD_BENCH_2, best_of_k


def row(subset: str, num_correct: int = 1, num_incorrect: int = 3, row_id: str = "1", **more: Any) -> dict[str, Any]:
    return {
        "id": row_id,
        "prompt": f"Q {subset} {row_id}",
        "chosen": [f"right {i}" for i in range(num_correct)],
        "rejected": [f"wrong {i}" for i in range(num_incorrect)],
        "num_correct": num_correct,
        "subset": subset,
        **more,
    }


def ties(scored: Callable[..., Any], number: int, ref: Sequence[float], tied: Sequence[Sequence[float]]) -> list[Any]:
    """The two rows of a number: scores of the reference row, right one first, and of the tied row, right | wrong."""
    right, wrong = tied
    return [
        scored(REWARD_BENCH_2, row("Ties", 1, len(ref) - 1, f"ref:{number}"), ref),
        scored(REWARD_BENCH_2, row("Ties", len(right), len(wrong), f"tied:{number}"), [*right, *wrong]),
    ]


@pytest.mark.parametrize(
    ("scores", "result"),
    [([2, 1, 0, 1], 1.0), ([1, 1, 0, 0], 0.5), ([1, 1, 1, 1], 0.25), ([0, 1, 0, 0], 0.0), ([1, 1, 1, 0], 1 / 3)],
)
def test_a_shared_top_counts_as_its_part(scores: list[float], result: float) -> None:
    assert best_of_k(scores) == pytest.approx(result)


@pytest.mark.parametrize(
    ("ref", "tied", "score"),
    [
        # gap 5, spread 0: all five means are 1.
        ([5, 0, 0], ([5, 5, 5], [0, 0]), 1.01),
        # gap of the tied row .5, spread 8: both accurate, neither preferred, tanh(.5 / 8 - 1) = -.73407.
        ([5, 0], ([9, 1], [0.5]), 0.5926593),
        # reference gap -5, spread .1: tied accurate and preferred; the smaller gap is not, and tanh is -1.
        ([0, 5], ([5, 4.9], [0]), 0.49),
        # reference gap .05 is below the spread .1: all but the fourth, tanh(.5 - 1) = -.46212.
        ([0.05, 0], ([5, 4.9], [0]), 0.7953788),
        # 0 / 0 counts as 0: nothing is right.
        ([1, 1], ([1, 1], [1]), 0.0),
    ],
)
def test_ties(scored: Callable[..., Any], named: Callable[..., Any], ref: list[float], tied: Any, score: float) -> None:
    found = named(REWARD_BENCH_2.results(ties(scored, 1, ref, tied)))
    assert found["Ties"].value == pytest.approx(score, abs=1e-6)


def test_ties_are_means_over_numbers(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    """A perfect number and one of which nothing is right: the means are 1/2, and tanh is 1 and -1: .5."""
    rows = [*ties(scored, 1, [5, 0], ([5, 5], [0])), *ties(scored, 2, [0, 5], ([1, 0], [5]))]
    # Number 2: gap -5, spread 1, tanh(-6) = -.99998771.
    assert named(REWARD_BENCH_2.results(rows))["Ties"].value == pytest.approx(0.5 + 0.01 * (1 - 0.99998771) / 2)


def test_ties_need_both_kinds(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    """Without a tied row there is no score, rather than part of a sum."""
    rows = ties(scored, 1, [5, 0], ([5, 5], [0]))[:1]
    assert named(REWARD_BENCH_2.results(rows))["Ties"].value is None


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_an_affine_change_of_scores_changes_nothing(scale: float, shift: float) -> None:
    """Binary fractions, so that equal differences stay equal."""
    scale, shift = round(scale * 8) / 8 or 1.0, round(shift * 8) / 8

    def overall(change: Callable[[float], float]) -> list[float | None]:
        rows = []
        for source, scores in (
            (row("Math"), [2.0, 1.0, 2.0, 0.0]),
            (row("Ties", 1, 1, "ref:1"), [0.5, 0.0]),
            (row("Ties", 2, 1, "tied:1"), [5.0, 4.75, 0.0]),
        ):
            read = REWARD_BENCH_2.read(source, "a:1")
            rows.append(read.scored([change(value) for value in scores], [1] * len(scores)))
        return [result.value for result in REWARD_BENCH_2.results(rows)]

    assert overall(lambda value: scale * value + shift) == pytest.approx(overall(lambda value: value))


def test_overall_is_the_plain_mean_of_subsets(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    """Math 1 and 0, Safety 1/2, Ties 1.01, the rest absent: (.5 + .5 + 1.01) / 3 = .67; rows but Ties: 1.5 / 3."""
    rows = [
        scored(REWARD_BENCH_2, row("Math"), [2, 1, 1, 1]),
        scored(REWARD_BENCH_2, row("Math", row_id="2"), [0, 1, 1, 1]),
        scored(REWARD_BENCH_2, row("Safety"), [1, 1, 0, 0]),
        *ties(scored, 1, [5, 0, 0], ([5, 5, 5], [0, 0])),
    ]
    results = REWARD_BENCH_2.results(rows)
    assert results[0].value == pytest.approx(0.67)
    assert results[1].value == pytest.approx(0.5)
    assert [part.name for part, _ in results[0].parts if part.value is None] == ["Factuality", "Precise IF", "Focus"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("Maths"), "subset is 'Maths'; expected one of Factuality"),
        (row("Math", num_correct=2), "num_correct is 2; expected 1 outside Ties"),
        (row("Math") | {"num_correct": 4}, "num_correct is 4, but chosen holds 1 answers"),
        (row("Ties", row_id="7"), "id is '7'; expected ref:NUMBER or tied:NUMBER in Ties"),
        (row("Ties", row_id="tied:7"), "num_correct is 1; expected 2 or more right answers in a tied row"),
        (row("Math") | {"rejected": "wrong"}, "rejected is text; expected a list of answers"),
        (row("Math") | {"rejected": []}, "rejected holds 0 answers; expected 1 or more"),
    ],
)
def test_bad_rows(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        REWARD_BENCH_2.read(bad, "a.jsonl:1")


def test_names_of_subsets_in_any_case() -> None:
    assert REWARD_BENCH_2.read(row("precise if"), "a:1").subset == "Precise IF"
