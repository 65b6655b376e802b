from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xrlhf.data.reasons import Reason, RowError
from xrlhf.evaluation.benchmarks.reward_bench import PRIOR_SETS, REWARD_BENCH, SECTIONS


def row(subset: str | None, prompt: str = "Q", **more: Any) -> dict[str, Any]:
    values = {"prompt": prompt, "chosen": "good", "rejected": "bad", "subset": subset, "id": 7, **more}
    return {name: value for name, value in values.items() if value is not None}


def share(scored: Callable[..., Any], subset: str, right: int, total: int) -> list[Any]:
    """``total`` rows of a subset of which ``right`` are ranked right."""
    return [
        scored(REWARD_BENCH, row(subset, f"{subset} {i}"), [1.0, 0.0] if i < right else [0.0, 1.0])
        for i in range(total)
    ]


def test_section_weights_are_the_published_counts() -> None:
    totals = {name: sum(subsets.values()) for name, subsets in SECTIONS.items()}
    assert totals == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}


def test_sections_weigh_subsets_by_fixed_counts(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    """Chat of 1 of 2 alpacaeval-easy rows and 1 of 1 mt-bench-easy: (.5 * 100 + 1 * 28) / 128 = .609375.

    Reasoning of 1 of 4 math-prm and 1 of 2 hep-go: (.25 * 984 + .5 * 164) / 1148 = .285714. The mean of both is
    .447545, since the sections without rows are left out; all rows together have 4 of 9 right.
    """
    rows = [
        *share(scored, "alpacaeval-easy", 1, 2),
        *share(scored, "mt-bench-easy", 1, 1),
        *share(scored, "math-prm", 1, 4),
        *share(scored, "hep-go", 1, 2),
    ]
    results = REWARD_BENCH.results(rows)
    found = named(results)
    assert found["Chat"].value == pytest.approx(0.609375)
    assert found["Reasoning"].value == pytest.approx(0.25 * 984 / 1148 + 0.5 * 164 / 1148)
    assert found["Chat Hard"].value is None
    assert results[0].value == pytest.approx((0.609375 + 328 / 1148) / 2)
    assert found["all rows"].value == pytest.approx(4 / 9)
    assert "RewardBench (with prior sets)" not in found


def test_the_published_check_vector(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    """The README of allenai/reward-bench prints the subset scores of PKU-Alignment/beaver-7b-v1.0-cost.

    They come to .6089385 in Chat: 218 of 358 rows, since the counts of that section are its numbers of rows. The other
    sections: .4495614 is 205 of 456, .7216216 is 534 of 740. Any split of these sums over subsets gives them.
    """
    sums = {"Chat": 218, "Chat Hard": 205, "Safety": 534}
    rows = []
    for section, right in sums.items():
        for subset, count in SECTIONS[section].items():
            rows += share(scored, subset, min(right, count), count)
            right -= min(right, count)
    found = named(REWARD_BENCH.results(rows))
    assert found["Chat"].value == pytest.approx(0.6089385, abs=5e-8)
    assert found["Chat Hard"].value == pytest.approx(0.4495614, abs=5e-8)
    assert found["Safety"].value == pytest.approx(0.7216216, abs=5e-8)


def test_prior_sets_weigh_half_a_section(scored: Callable[..., Any], named: Callable[..., Any]) -> None:
    """Every section at 1, prior sets at 1, 0, 0, 1: (2 + 2 + 2 + 2 + .5) / 9 = .944444."""
    rows = [one for subsets in SECTIONS.values() for name in subsets for one in share(scored, name, 1, 1)]
    for place, name in enumerate(PRIOR_SETS):
        prior = row(None, prompt=f"prior {place}")
        rows.append(scored(REWARD_BENCH, prior, [float(place in (0, 3)), 0.5], f"{name}-00000-of-00001.parquet[0]"))
    found = named(REWARD_BENCH.results(rows))
    assert found["RewardBench (four sections)"].value == 1.0
    assert found["Prior Sets"].value == 0.5
    assert found["RewardBench (with prior sets)"].value == pytest.approx(8.5 / 9)


def test_a_tie_is_wrong(scored: Callable[..., Any]) -> None:
    assert REWARD_BENCH.results([scored(REWARD_BENCH, row("hep-go"), [1.0, 1.0])])[0].value == 0.0


def test_recognised_by_its_subsets_and_by_the_names_of_prior_sets() -> None:
    assert REWARD_BENCH.recognises(row("hep-go"), "a.jsonl:1")
    assert REWARD_BENCH.recognises(row(None), "data/shp.jsonl:1")
    assert not REWARD_BENCH.recognises(row("my own"), "a.jsonl:1")
    assert not REWARD_BENCH.recognises(row(None), "a.jsonl:1")
    assert not REWARD_BENCH.recognises(row("hep-go", chosen=["good"]), "a.jsonl:1")
    assert not REWARD_BENCH.recognises(row(["hep-go"]), "a.jsonl:1")  # type: ignore[arg-type]


def test_prompts_may_be_messages() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    read = REWARD_BENCH.read({**row(None), "prompt": messages}, "anthropic_hhh.jsonl:3")
    assert (read.subset, len(read.group.prompt)) == ("anthropic_hhh", 3)


def test_an_unknown_subset() -> None:
    with pytest.raises(RowError, match="subset is 'hep-perl'; expected one of the subsets of RewardBench") as caught:
        REWARD_BENCH.read(row("hep-perl"), "a.jsonl:1")
    assert caught.value.reason is Reason.BAD_LABEL


def test_blank_and_equal_answers_stay(scored: Callable[..., Any]) -> None:
    """The benchmark counts such a row as wrong; leaving it out would raise the score."""
    assert scored(REWARD_BENCH, row("hep-go", chosen="", rejected=""), [0.0, 0.0]).scores == (0.0, 0.0)
