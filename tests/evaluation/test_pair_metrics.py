"""Calibration, length bias, margins and comparison, over rows made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrlhf.evaluation.benchmarks import ScoredRow
from xrlhf.evaluation.calibration import calibration, fit_temperature
from xrlhf.evaluation.comparison import agreement, matched_rows, mcnemar
from xrlhf.evaluation.length_bias import correlation, length_bias, ranks
from xrlhf.evaluation.margins import histograms, margins
from xrlhf.evaluation.pair_table import pair_table


def row(
    scores: Sequence[float],
    lengths: Sequence[int] | None = None,
    *,
    prompt: str = "p",
    content: str = "c",
    row_ranks: Sequence[int] | None = None,
) -> ScoredRow:
    return ScoredRow(
        subset="s",
        ranks=tuple(row_ranks if row_ranks is not None else range(len(scores))),
        row_id="",
        location="a:1",
        details={},
        prompt=prompt,
        content=content,
        scores=tuple(scores),
        lengths=tuple(lengths if lengths is not None else [1] * len(scores)),
    )


def rows_of(margins_: Sequence[float]) -> list[ScoredRow]:
    """A row of two for each margin, every prompt another one."""
    return [row([margin, 0.0], prompt=str(place), content=str(place)) for place, margin in enumerate(margins_)]


def test_pairs_of_a_row_share_its_weight() -> None:
    """Ranks 0, 1, 1: two pairs of weight one half; a row of equal ranks has none."""
    table = pair_table([row([3, 1, 5], [7, 8, 9], row_ranks=[0, 1, 1]), row([1, 2], row_ranks=[0, 0]), row([2, 1])])
    assert table.margin.tolist() == [2, -2, 1]
    assert table.weight.tolist() == [0.5, 0.5, 1]
    assert table.rejected_length.tolist() == [8, 9, 1]
    assert table.row.tolist() == [0, 0, 2]
    assert table.mean(table.right) == 0.75


# ------------------------------------------------------------------------------------------------ calibration


def test_a_calibrated_model() -> None:
    """sigmoid(ln 3) = 3/4, and three of four are right: no error, and the best temperature is 1.

    Log-loss -(3 ln .75 + ln .25) / 4, Brier (3 * .0625 + .5625) / 4 = .1875.
    """
    found = calibration(pair_table(rows_of([math.log(3)] * 3 + [-math.log(3)])))
    assert found is not None
    assert found.ece == pytest.approx(0.0, abs=1e-12)
    assert found.log_loss == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)
    assert found.brier == pytest.approx(0.1875)
    assert found.temperature == pytest.approx(1.0)
    assert found.ece_after is None
    (filled,) = [one for one in found.bins if one.num_pairs]
    assert (filled.num_pairs, filled.accuracy, filled.confidence) == (4, 0.75, pytest.approx(0.75))


def test_an_overconfident_model_is_scaled_back() -> None:
    """Twice the margin of a calibrated one: temperature 2, and held-out scaling takes the error away.

    20 prompts, so that every fold of the others has three of four right as well: the pattern has period 4, folds 5.
    """
    pattern = [math.log(9)] * 3 + [-math.log(9)]
    found = calibration(pair_table(rows_of(pattern * 5)))
    assert found is not None
    assert found.temperature == pytest.approx(2.0)
    # sigmoid(ln 9) = .9 against .75.
    assert found.ece == pytest.approx(0.15)
    assert found.ece_after == pytest.approx(0.0, abs=1e-9)
    assert found.log_loss_after == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)


def test_an_undecided_model() -> None:
    """Margins of 0: ln 2 and 1/4, half right at confidence one half, no temperature helps."""
    found = calibration(pair_table(rows_of([0.0, 0.0])))
    assert found is not None
    assert (found.log_loss, found.brier, found.ece) == (pytest.approx(math.log(2)), 0.25, pytest.approx(0))
    assert found.temperature is None


def test_no_temperature_where_all_or_too_few_are_right() -> None:
    assert fit_temperature(np.array([1.0, 2.0]), np.ones(2)) is None
    assert fit_temperature(np.array([1.0, -1.0]), np.ones(2)) is None
    assert calibration(pair_table([])) is None


@given(st.lists(st.floats(-800, 800), min_size=1, max_size=30))
def test_calibration_is_finite(values: list[float]) -> None:
    found = calibration(pair_table(rows_of(values)))
    assert found is not None
    assert math.isfinite(found.log_loss)
    assert 0 <= found.ece <= 1
    assert sum(one.num_pairs for one in found.bins) == len(values)


# ------------------------------------------------------------------------------------------------ length


def test_accuracy_by_length() -> None:
    """Chosen longer: one right, one wrong. Shorter: right. Same length: a tie.

    The longer answer is chosen in 2 of 3 pairs of unequal length and scores higher in the first alone.
    """
    rows = [
        row([1, 0], [10, 5], prompt="a"),
        row([0, 1], [10, 5], prompt="b"),
        row([1, 0], [5, 10], prompt="c"),
        row([1, 1], [10, 10], prompt="d"),
    ]
    found = length_bias(rows, pair_table(rows))
    assert (found.chosen_is_longer.value, found.chosen_is_longer.num_pairs) == (0.5, 2)
    assert (found.chosen_is_shorter.value, found.same_length.value) == (1.0, 0.5)
    assert found.longer_is_chosen.value == pytest.approx(2 / 3)
    assert found.longer_scores_higher.value == pytest.approx(1 / 3)
    assert (found.gap, found.balanced_accuracy) == (-0.5, 0.75)
    assert (found.matched_accuracy.value, found.matched_accuracy.num_pairs) == (0.5, 1)


def test_what_length_adds_is_found_and_taken_out() -> None:
    """Scores are 2 * ln(1 + tokens), and 1/2 more for the better answer.

    So the slope is 2, length explains all that the preference does not, and without it every pair is right.
    """
    lengths = [(3, 9), (20, 4), (6, 30), (15, 15)]
    rows = [
        row([2 * math.log1p(chosen) + 0.5, 2 * math.log1p(rejected)], [chosen, rejected], prompt=str(place))
        for place, (chosen, rejected) in enumerate(lengths)
    ]
    found = length_bias(rows, pair_table(rows))
    assert found.slope == pytest.approx(2.0)
    assert found.correlation_partial == pytest.approx(1.0)
    assert found.adjusted_accuracy.value == 1.0
    assert found.chosen_is_shorter.value == 0.0


def test_no_lengths_to_compare() -> None:
    rows = rows_of([1.0, -1.0])
    found = length_bias(rows, pair_table(rows))
    assert (found.chosen_is_longer.value, found.gap, found.slope, found.correlation) == (None, None, None, None)
    assert found.adjusted_accuracy.value == 0.5


def test_ranks_and_correlation() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0])).tolist() == [2.5, 1.0, 2.5]
    assert correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 8.0, 6.0])) == pytest.approx(-1.0)
    assert correlation(np.array([1.0]), np.array([1.0])) is None


# ------------------------------------------------------------------------------------------------ margins


def test_margins() -> None:
    """Margins -2, 0.05, 1, 3: mean .5125, one of four below .1, the only error is 2 wide."""
    rows = rows_of([-2.0, 0.05, 1.0, 3.0])
    found = margins(rows, pair_table(rows))
    assert found is not None
    assert found.margin.mean == pytest.approx(0.5125)
    assert (found.small_share, found.wrong_mean) == (0.25, 2.0)
    assert found.quantiles["50"] == pytest.approx(0.525)
    assert (found.chosen.mean, found.rejected.std) == (pytest.approx(0.5125), 0.0)
    assert margins([], pair_table([])) is None


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40))
def test_histograms_hold_every_number_and_part_at_zero(values: list[float]) -> None:
    rows = rows_of(values)
    found = histograms(rows, pair_table(rows))
    assert sum(map(sum, found["margins"].counts.values())) == len(values)
    assert sum(found["scores"].counts["chosen"]) == sum(found["scores"].counts["rejected"]) == len(values)
    edges = found["margins"].edges
    if min(values) < -1 and max(values) > 1:
        assert min(abs(edge) for edge in edges) == 0.0


def test_histograms_of_nothing() -> None:
    assert histograms([], pair_table([]))["margins"].edges == ()


# ------------------------------------------------------------------------------------------------ comparison


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    # 2 * (1 + 4) / 16; 2 * 1 / 32; both sides the same; nobody differs.
    [(1, 3, 0.625), (5, 0, 0.0625), (2, 2, 1.0), (0, 0, 1.0)],
)
def test_mcnemar(only_first: int, only_second: int, p_value: float) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(p_value)
    assert mcnemar(only_second, only_first) == pytest.approx(p_value)


def test_agreement() -> None:
    """Right by the first: 1, 2, 4; by the second: 1, 3, 4. The third row is a tie of the first model's."""
    first, second = rows_of([1, 1, 0, 2]), rows_of([5, -1, 1, 1])
    found = agreement(first, second)
    assert found is not None
    assert (found.both_right, found.only_first, found.only_second, found.both_wrong) == (2, 1, 1, 0)
    assert (found.num_rows, found.same_order, found.mcnemar_p) == (4, 0.5, 1.0)
    assert agreement([], []) is None


def test_rows_are_matched_by_content() -> None:
    """Repeated rows are matched one by one; rows of one side alone are left out."""
    first = [row([1, 0], content=name) for name in ("a", "b", "b", "c")]
    second = [row([2, 0], content=name) for name in ("b", "a", "d", "b")]
    one, other = matched_rows(first, second)
    assert [each.content for each in one] == [each.content for each in other] == ["a", "b", "b"]
    assert other[1] is second[0]
    assert other[2] is second[3]
