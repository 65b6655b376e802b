from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xrlhf.data.reasons import RowError
from xrlhf.evaluation.benchmarks.rm_bench import RM_BENCH, level_of


def row(domain: str | None = "chat", prompt: str = "Q", **more: Any) -> dict[str, Any]:
    values = {"prompt": prompt, "chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"], "domain": domain}
    return {name: value for name, value in {**values, **more}.items() if value is not None}


def test_levels() -> None:
    """Above the diagonal the right answer is plainer than the wrong one."""
    assert [[level_of(i, j) for j in range(3)] for i in range(3)] == [
        ["normal", "hard", "hard"],
        ["easy", "normal", "hard"],
        ["easy", "easy", "normal"],
    ]


def test_a_model_that_only_sees_style(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    """Scores 0, 1, 2 by style on either side: easy always right, hard never, normal ties, which are wrong."""
    found = named(RM_BENCH.results([scored(RM_BENCH, row(), [0, 1, 2, 0, 1, 2])]))
    assert [found[name].value for name in ("hard", "normal", "easy")] == [0.0, 0.0, 1.0]
    assert found["chat"].value == found["RM-Bench"].value == pytest.approx(1 / 3)


def test_the_matrix_over_two_prompts(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    """Prompt 1: chosen 3, 2, 1, rejected 0, 2.5, 2.5; prompt 2: all chosen above all rejected.

    Prompt 1 is right at (0,0), (0,1), (0,2), (1,0), (2,0). So hard = (1 + 1 + .5) / 3, normal = (1 + .5 + .5) / 3,
    easy = (1 + 1 + .5) / 3, and the domain is the mean of the nine cells, 14 of 18.
    """
    rows = [
        scored(RM_BENCH, row(prompt="1"), [3, 2, 1, 0, 2.5, 2.5]),
        scored(RM_BENCH, row(prompt="2"), [1, 1, 1, 0, 0, 0]),
    ]
    found = named(RM_BENCH.results(rows))
    assert found["chat hard"].value == pytest.approx(2.5 / 3)
    assert found["chat normal"].value == pytest.approx(2 / 3)
    assert found["chat easy"].value == pytest.approx(2.5 / 3)
    assert found["chat"].value == found["all rows"].value == pytest.approx(14 / 18)


def test_both_safety_files_are_one_domain(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    """Safety pools prompts (1 of 3 right), and domains count the same: (1/3 + 1) / 2."""
    right, wrong = [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]
    rows = [
        scored(RM_BENCH, row("safety-refuse", "1"), right),
        scored(RM_BENCH, row("safety-response", "2"), wrong),
        scored(RM_BENCH, row("safety-response", "3"), wrong),
        scored(RM_BENCH, row("math", "4"), right),
    ]
    found = named(RM_BENCH.results(rows))
    assert found["safety"].value == pytest.approx(1 / 3)
    assert found["RM-Bench"].value == pytest.approx(2 / 3)
    assert found["all rows"].value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("file", "domain"),
    [
        ("data/chat_filtered.json[3]", "chat"),
        ("safety-refuse_filtered.json[0]", "safety-refuse"),
        ("math.jsonl:9", "math"),
    ],
)
def test_a_file_of_one_domain_is_told_by_its_name(file: str, domain: str) -> None:
    assert RM_BENCH.read(row(None, subset="alpacaeval"), file).subset == domain


def test_recognised() -> None:
    assert RM_BENCH.recognises(row(), "a:1")
    assert not RM_BENCH.recognises(row(num_correct=3), "a:1")
    assert not RM_BENCH.recognises(row(chosen=["c0"]), "a:1")
    assert not RM_BENCH.recognises({"prompt": "Q", "chosen": "c", "rejected": "r"}, "a:1")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(None), "the row has no domain and the file's name tells none"),
        (row("cooking"), "domain is 'cooking'; expected one of chat, code, math, safety-refuse, safety-response"),
        (row(chosen=["c0", "c1"]), "chosen holds 2 answers; expected 3"),
    ],
)
def test_bad_rows(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        RM_BENCH.read(bad, "total_dataset.json[0]")
