"""From rewards to scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrlhf.errors import ConfigError
from xrlhf.rl.scores import RunningMoments, ScoreRule

LENGTHS = np.array([[1, 1]])


@given(st.lists(st.lists(st.floats(-100, 100), max_size=5), min_size=1, max_size=5))
def test_moments_are_those_of_all_values_together(parts: list[list[float]]) -> None:
    moments = RunningMoments()
    for part in parts:
        moments.add(np.array(part))
    everything = np.array([value for part in parts for value in part])
    if len(everything):
        assert moments.mean == pytest.approx(everything.mean(), abs=1e-9)
    if len(everything) > 1 and everything.std() > 1e-3:
        assert moments.std == pytest.approx(everything.std(ddof=1), rel=1e-6)


def test_few_or_equal_values_divide_by_one() -> None:
    moments = RunningMoments()
    assert moments.std == 1.0
    moments.add(np.array([4.0]))
    assert (moments.mean, moments.std) == (4.0, 1.0)
    moments.add(np.array([4.0, 4.0]))
    assert moments.std == 1.0


def test_the_order_of_what_is_done() -> None:
    """Rewards 3 and 11, baseline 1: 2 and 10, clipped at 4: 2 and 4; the second did not end: 4 - 5 = -1."""
    rule = ScoreRule(baseline=1.0, clip=4.0, no_end_penalty=5.0)
    found = rule.scores(np.array([[3.0, 11.0]]), np.array([[True, False]]), LENGTHS)
    np.testing.assert_allclose(found, [[2.0, -1.0]])


def test_normalising_runs_on_and_can_go_on_later() -> None:
    """1 and 3: mean 2, sample deviation sqrt 2. Then 5: mean 3, deviation 2, so 5 becomes 1; NaN counts nowhere."""
    rule = ScoreRule(normalise=True)
    first = rule.scores(np.array([[1.0, 3.0]]), np.array([[True, True]]), LENGTHS)
    np.testing.assert_allclose(first, [[-(0.5**0.5), 0.5**0.5]])
    other = ScoreRule(normalise=True)
    other.load_state(rule.state())
    found = other.scores(np.array([[5.0, np.nan]]), np.array([[True, True]]), LENGTHS)
    np.testing.assert_allclose(found, [[1.0, np.nan]])


def test_long_answers_lose_more_the_longer_they_are() -> None:
    """Equation 13 of DAPO with L_max = 20 and L_cache = 4: from 16 tokens on a quarter a token, 1 from 20 on."""
    rule = ScoreRule(overlong_length=20, overlong_buffer=4)
    lengths = np.array([[1, 16, 17, 18], [19, 20, 21, 100]])
    found = rule.scores(np.zeros((2, 4)), np.ones((2, 4), dtype=bool), lengths)
    np.testing.assert_allclose(found, [[0.0, 0.0, -0.25, -0.5], [-0.75, -1.0, -1.0, -1.0]])
    np.testing.assert_array_equal(rule.is_overlong(lengths), [[False, False, True, True], [True] * 4])


def test_the_penalty_for_length_comes_last() -> None:
    """Clipped to 4, less 5 for no end, less 2 * 0.5 for 3 tokens of a buffer of 6 behind 4; without a reward none."""
    rule = ScoreRule(clip=4.0, no_end_penalty=5.0, overlong_length=10, overlong_buffer=6, overlong_penalty=2.0)
    found = rule.scores(np.array([[9.0, np.nan]]), np.array([[False, True]]), np.array([[7, 10]]))
    np.testing.assert_allclose(found, [[-2.0, np.nan]])
    assert not ScoreRule().is_overlong(np.array([10**6])).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "x"}, "score_baseline is 'x'; accepted is a finite number"),
        ({"normalise": 1}, "score_normalise is 1; accepted are True and False"),
        ({"clip": 0}, "score_clip is 0; accepted is a finite number greater than 0"),
        ({"no_end_penalty": -1}, "no_end_penalty is -1; accepted is a finite number 0 or greater"),
        ({"overlong_penalty": -1}, "overlong_penalty is -1; accepted is a finite number 0 or greater"),
        ({"overlong_length": 8}, "overlong_length and overlong_buffer belong together: give both, or neither"),
        (
            {"overlong_length": 8.0, "overlong_buffer": 2},
            r"overlong_length must be a whole number of at least 1, got 8\.0",
        ),
        (
            {"overlong_length": 8, "overlong_buffer": 9},
            "overlong_buffer is 9, more than overlong_length, 8: take at most that",
        ),
    ],
)
def test_a_wrong_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^RLTrainLoop: {message}$"):
        ScoreRule(**options)
