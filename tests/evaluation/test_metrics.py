from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from xrlhf.errors import ConfigError, DataError, TrainingError
from xrlhf.evaluation import GroupMetrics, pair_statistics, wilson_interval

NAN = math.nan
MEANS = {"accuracy", "accuracy_low", "accuracy_high", "margin", "chosen_score_mean", "rejected_score_mean", "tie_share"}
COUNTS = {"num_groups", "num_groups_without_pair"}


def add_pairs(metrics: GroupMetrics, rows: list[list[float]], datasets: Tensor | int = 0, **options: Tensor) -> None:
    """Rows of present, unrated responses."""
    scores = torch.tensor(rows)
    metrics.add(scores, torch.ones(scores.shape, dtype=torch.bool), torch.full(scores.shape, NAN), datasets, **options)


def test_five_pairs_at_batch_four_give_the_true_accuracy() -> None:
    """One of five pairs is right: 1/5. The mean of batch means would be (1/4 + 0/1) / 2 = .125."""
    rows = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    metrics = GroupMetrics()
    add_pairs(metrics, rows[:4])
    add_pairs(metrics, rows[4:])
    assert len(metrics) == 5
    assert metrics.compute(["eval"])["accuracy"] == 0.2


def test_all_metrics_by_hand() -> None:
    """Set a: (3, 1) right with d 2, (1, 1) tied. Set b: (0, 4) wrong with d -4, and a group of equal ratings.

    Overall: accuracy (1 + .5 + 0)/3, margin (2 + 0 - 4)/3, chosen (3 + 1 + 0)/3, rejected (1 + 1 + 4)/3, ties 1/3.
    """
    metrics = GroupMetrics()
    scores = torch.tensor([[3.0, 1.0], [1.0, 1.0], [0.0, 4.0], [9.0, 9.0]])
    ratings = torch.tensor([[NAN, NAN], [2.0, 1.0], [NAN, 1.0], [3.0, 3.0]])
    metrics.add(scores, torch.ones(4, 2, dtype=torch.bool), ratings, torch.tensor([0, 0, 1, 1]))
    result = metrics.compute(["a", "b"])
    low, high = wilson_interval(1.5, 3)
    assert {name: value for name, value in result.items() if "/" not in name} == {
        "accuracy": 0.5,
        "accuracy_low": low,
        "accuracy_high": high,
        "margin": -2 / 3,
        "chosen_score_mean": 4 / 3,
        "rejected_score_mean": 2.0,
        "tie_share": 1 / 3,
        "num_groups": 3.0,
        "num_groups_without_pair": 1.0,
    }
    assert {name: result[f"a/{name}"] for name in MEANS - {"accuracy_low", "accuracy_high"}} == {
        "accuracy": 0.75,
        "margin": 1.0,
        "chosen_score_mean": 2.0,
        "rejected_score_mean": 1.0,
        "tie_share": 0.5,
    }
    assert (result["b/accuracy"], result["b/num_groups"], result["b/num_groups_without_pair"]) == (0.0, 1.0, 1.0)


def test_a_group_counts_once_whatever_its_number_of_pairs() -> None:
    """Four responses, all six pairs right: 1. Two responses, ranked wrong: 0. Mean over groups 1/2, not 6/7."""
    metrics = GroupMetrics()
    add_pairs(metrics, [[4.0, 3.0, 2.0, 1.0]])
    add_pairs(metrics, [[0.0, 1.0]])
    assert metrics.compute(["eval"])["accuracy"] == 0.5


def test_padding_to_more_responses_changes_nothing() -> None:
    wide, narrow = GroupMetrics(), GroupMetrics()
    mask = torch.tensor([[True, True, False, False]])
    wide.add(torch.tensor([[0.1, 0.7, NAN, 3.0]]), mask, torch.full((1, 4), NAN), datasets=0)
    add_pairs(narrow, [[0.1, 0.7]])
    assert torch.equal(wide.state(), narrow.state())


def test_filler_groups_leave_no_row_even_when_broken() -> None:
    metrics = GroupMetrics()
    add_pairs(metrics, [[1.0, 0.0], [NAN, 0.0]], weights=torch.tensor([1.0, 0.0]))
    assert len(metrics) == 1
    assert metrics.compute(["eval"])["num_groups"] == 1.0


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_a_score_that_is_not_finite_stops_with_its_place(value: float) -> None:
    metrics = GroupMetrics()
    with pytest.raises(TrainingError) as caught:
        add_pairs(metrics, [[1.0, 0.0], [0.0, value]], datasets=torch.tensor([0, 2]), group_ids=torch.tensor([40, 41]))
    message = str(caught.value)
    assert f"group 41 of data set 2 with {value}" in message
    assert "in 1 of 2 groups of this batch" in message
    assert "float16" in message
    assert "\n" not in message
    assert len(metrics) == 0
    with pytest.raises(TrainingError, match="row 1 of the batch of data set 0"):
        add_pairs(metrics, [[1.0, 0.0], [0.0, value]])


def test_a_broken_score_of_an_absent_response_is_fine() -> None:
    metrics = GroupMetrics()
    mask = torch.tensor([[True, True, False]])
    metrics.add(torch.tensor([[1.0, 0.0, NAN]]), mask, torch.full((1, 3), NAN), datasets=0)
    assert metrics.compute(["eval"])["accuracy"] == 1.0


def test_several_sets_keep_their_names_and_an_empty_one_its_counts() -> None:
    metrics = GroupMetrics()
    add_pairs(metrics, [[1.0, 0.0]], datasets=2)
    result = metrics.compute(["a", "b", "c"])
    assert set(result) == MEANS | COUNTS | {f"c/{name}" for name in MEANS | COUNTS} | {
        f"{name}/{count}" for name in ("a", "b") for count in COUNTS
    }
    assert (result["a/num_groups"], result["c/num_groups"]) == (0.0, 1.0)


def test_wrong_names_are_refused() -> None:
    metrics = GroupMetrics()
    add_pairs(metrics, [[1.0, 0.0]], datasets=1)
    with pytest.raises(ConfigError, match=r"two evaluation sets are called 'a'.*give each its own name"):
        metrics.compute(["a", "b", "a"])
    with pytest.raises(ValueError, match="a group belongs to data set 1, but only 1 names are given"):
        metrics.compute(["a"])


def test_nothing_to_measure_is_an_error_not_a_zero() -> None:
    with pytest.raises(DataError, match="none of the 0 evaluated groups has two responses"):
        GroupMetrics().compute(["eval"])
    metrics = GroupMetrics()
    metrics.add(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.full((1, 2), 3.0), datasets=0)
    with pytest.raises(DataError, match="none of the 1 evaluated groups"):
        metrics.compute(["eval"])


def test_wrong_shapes_are_named() -> None:
    metrics = GroupMetrics()
    rows = [[1.0, 0.0], [1.0, 0.0]]
    with pytest.raises(ValueError, match=r"datasets must be \(2,\), one value a group, not \(1,\)"):
        add_pairs(metrics, rows, datasets=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"weights must be \(2,\), one value a group, not \(3,\)"):
        add_pairs(metrics, rows, weights=torch.ones(3))
    with pytest.raises(ValueError, match=r"group_ids must be \(2,\), one value a group, not \(2, 1\)"):
        add_pairs(metrics, rows, group_ids=torch.zeros(2, 1))
    with pytest.raises(ValueError, match="dataset indices must be 0 or greater, but one is -1"):
        add_pairs(metrics, rows, datasets=-1)
    for state in (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 7), torch.zeros(7, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"a state is \(N, 7\) torch\.float64, not"):
            metrics.merge(state)
    assert metrics.state().shape == (0, 7)


def test_state_is_a_copy() -> None:
    metrics = GroupMetrics()
    add_pairs(metrics, [[1.0, 0.0]])
    metrics.state().zero_()
    assert metrics.compute(["eval"])["accuracy"] == 1.0


def test_half_precision_scores_keep_their_differences() -> None:
    metrics = GroupMetrics()
    scores = torch.tensor([[1.0, 0.5]], dtype=torch.bfloat16)
    metrics.add(scores, torch.ones(1, 2, dtype=torch.bool), torch.full((1, 2), NAN), datasets=0)
    assert metrics.compute(["eval"])["margin"] == 0.5


def random_set(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    num_groups = 37
    # Steps of 1/7 make ties among scores, and sums that do not add up exactly in floating point.
    scores = (10 * torch.randn(num_groups, 4, generator=generator)).round() / 7
    mask = torch.rand(num_groups, 4, generator=generator) < 0.8
    ratings = torch.randint(1, 4, (num_groups, 4), generator=generator).float()
    ratings[torch.rand(num_groups, 4, generator=generator) < 0.5] = NAN
    return scores, mask, ratings, torch.randint(0, 3, (num_groups,), generator=generator)


@given(seed=st.integers(0, 10_000), num_ranks=st.integers(1, 5), batch_size=st.integers(1, 40))
def test_any_split_and_any_order_give_bit_equal_metrics(seed: int, num_ranks: int, batch_size: int) -> None:
    whole = random_set(seed)
    reference = GroupMetrics()
    reference.add(*whole)

    shuffle = random.Random(seed)
    batches = torch.tensor(shuffle.sample(range(len(whole[0])), len(whole[0]))).split(batch_size)
    ranks = [GroupMetrics() for _ in range(num_ranks)]
    for batch in batches:
        shuffle.choice(ranks).add(*(values[batch] for values in whole))
    merged = GroupMetrics()
    for rank in shuffle.sample(ranks, num_ranks):
        merged.merge(rank.state())
    assert merged.compute(["a", "b", "c"]) == reference.compute(["a", "b", "c"])


@given(seed=st.integers(0, 10_000))
def test_agrees_with_brute_force(seed: int) -> None:
    scores, mask, ratings, datasets = random_set(seed)
    metrics = GroupMetrics()
    metrics.add(scores, mask, ratings, datasets)
    result = metrics.compute(["a", "b", "c"])
    for prefix, wanted in (("", {0, 1, 2}), ("a/", {0}), ("b/", {1}), ("c/", {2})):
        rows = []
        for group in range(len(scores)):
            present = [k for k in range(4) if mask[group, k]]
            s, r = scores[group].tolist(), ratings[group].tolist()
            differences = [s[i] - s[j] for i in present for j in present if i < j and r[i] != r[j]]
            if int(datasets[group]) in wanted and differences:
                n = len(differences)
                right, tied = sum(d > 0 for d in differences), sum(d == 0 for d in differences)
                others = [s[k] for k in present[1:]]
                rows.append(
                    ((right + tied / 2) / n, sum(differences) / n, tied / n, s[present[0]], sum(others) / len(others))
                )
        assert result[f"{prefix}num_groups"] == len(rows)
        for column, name in enumerate(("accuracy", "margin", "tie_share", "chosen_score_mean", "rejected_score_mean")):
            expected = sum(row[column] for row in rows) / len(rows)
            assert result[prefix + name] == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert result[f"{prefix}accuracy_low"] <= result[f"{prefix}accuracy"] <= result[f"{prefix}accuracy_high"]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3, to four digits.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_matches_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
    # Counting failures instead mirrors the interval.
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(n=st.integers(1, 2000), share=st.floats(0, 1))
def test_wilson_bounds_solve_the_score_equation(n: int, share: float) -> None:
    successes = share * n
    z = 1.959963984540054
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1
    for p in (low, high):
        assert (successes / n - p) ** 2 == pytest.approx(z * z * p * (1 - p) / n, abs=1e-12)


def test_interval_is_never_too_narrow_for_fractional_values() -> None:
    """Groups of three pairs, each right with probability .7: the mean of n = 40 lies in the interval at least 95 %.

    4,000 repetitions, so the share of covering intervals has a standard error of at most .0035.
    """
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(4000, 40, 3, generator=generator) < 0.7).double().mean(dim=2).sum(dim=1)
    covered = [low <= 0.7 <= high for low, high in (wilson_interval(total, 40) for total in values.tolist())]
    assert sum(covered) / len(covered) > 0.95


def test_wilson_interval_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="n is 0; an interval needs at least one value"):
        wilson_interval(0, 0)
    for successes in (-1, 6, NAN):
        with pytest.raises(ValueError, match=r"successes is .*; accepted is 0 to n, which is 5"):
            wilson_interval(successes, 5)


def test_pair_statistics_is_the_function_the_losses_share() -> None:
    from xrlhf.losses import pair_statistics as shared

    assert pair_statistics is shared
