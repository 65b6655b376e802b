"""Advantages, by hand and against slow references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xrlhf.errors import ConfigError
from xrlhf.rl.advantages import (
    GAE,
    GroupRelative,
    ReturnsToGo,
    discounted_sums,
    generalised_advantages,
    whiten,
)

NAN = float("nan")


def full(*rows: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as an array filled up with 9, and where they are."""
    longest = max(len(row) for row in rows)
    mask = np.array([[t < len(row) for t in range(longest)] for row in rows])
    values = np.full(mask.shape, 9.0)
    for row, target in zip(rows, values, strict=True):
        target[: len(row)] = row
    return values, mask


# ---------------------------------------------------------------- GAE


def test_gae_by_hand() -> None:
    """r = 0 0 1, V = .5 .2 .4, gamma .9, lambda .5.

    delta_3 = 1 - .4 = .6; delta_2 = .9 * .4 - .2 = .16; delta_1 = .9 * .2 - .5 = -.32.
    A_3 = .6; A_2 = .16 + .45 * .6 = .43; A_1 = -.32 + .45 * .43 = -.1265.
    """
    rewards, mask = full([0, 0, 1])
    values, _ = full([0.5, 0.2, 0.4])
    found = generalised_advantages(rewards, values, mask, gamma=0.9, lam=0.5)
    np.testing.assert_allclose(found, [[-0.1265, 0.43, 0.6]])


def test_an_answer_that_is_shorter_is_as_it_is_alone() -> None:
    rewards, mask = full([0, 0, 1], [2])
    values, _ = full([0.5, 0.2, 0.4], [0.5])
    found = generalised_advantages(rewards, values, mask, gamma=0.9, lam=0.5)
    np.testing.assert_allclose(found[1], [1.5, 0, 0])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_sum_of_all_later_errors(seed: int, gamma: float, lam: float) -> None:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 7, 4)
    mask = np.arange(lengths.max()) < lengths[:, None]
    rewards, values = generator.normal(size=(2, *mask.shape))
    found = generalised_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    for row, length in enumerate(lengths):
        r, v = rewards[row, :length], [*values[row, :length], 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            slow = sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, length))
            assert found[row, t] == pytest.approx(slow, abs=1e-9)


def test_the_estimator_gives_returns_before_whitening() -> None:
    """gamma = lambda = 1, a reward of 1 at the end: every return is 1, whatever the critic said."""
    rewards, mask = full([0, 1], [1])
    values, _ = full([0.5, 0.25], [0.1])
    found = GAE(gamma=1.0, lam=1.0).estimate(rewards, mask, values, 1)
    assert found.returns is not None
    np.testing.assert_allclose(found.returns, [[1, 1], [1, 0]])
    counted = found.advantages[mask]
    assert counted.mean() == pytest.approx(0)
    assert counted.var(ddof=1) == pytest.approx(1)
    plain = GAE(gamma=1.0, lam=1.0, whiten=False).estimate(rewards, mask, values, 1)
    np.testing.assert_allclose(plain.advantages, [[0.5, 0.75], [0.9, 0]])


def test_an_answer_without_a_reward_teaches_nothing() -> None:
    """Neither policy (advantage 0, no part in the mean) nor critic (it was right)."""
    rewards, mask = full([0, NAN], [2.0], [1.0])
    values, _ = full([0.5, 0.25], [0.0], [0.0])
    found = GAE(gamma=1.0, lam=1.0).estimate(rewards, mask, values, 1)
    assert found.returns is not None
    np.testing.assert_allclose(found.advantages[0], 0)
    np.testing.assert_allclose(found.returns[0], [0.5, 0.25])
    # 2 and 1: mean 1.5, sample variance .5.
    np.testing.assert_allclose(found.advantages[1:, 0], [0.5 / 0.5**0.5, -0.5 / 0.5**0.5])


# ---------------------------------------------------------------- whitening


def test_whitening_by_hand() -> None:
    """1, 2, 3 count: mean 2, sample variance 1; 9 does not."""
    values, mask = full([1, 2], [3])
    np.testing.assert_allclose(whiten(values, mask), [[-1, 0], [1, 0]])
    np.testing.assert_allclose(whiten(values, mask, shift=False), [[1, 2], [3, 0]])


def test_the_variance_has_a_floor() -> None:
    """Equal values, and a single one, are 0; a difference of 1e-6 is divided by 1e-4, not by itself."""
    values, mask = full([5, 5], [5])
    np.testing.assert_array_equal(whiten(values, mask), 0)
    one, mask_of_one = full([3])
    np.testing.assert_array_equal(whiten(one, mask_of_one), 0)
    small, mask_of_two = full([1e-6, -1e-6])
    np.testing.assert_allclose(whiten(small, mask_of_two), [[0.01, -0.01]])
    np.testing.assert_array_equal(whiten(values, np.zeros_like(mask)), 0)


# ---------------------------------------------------------------- relative to a group


def of_answers(estimator: GroupRelative, rewards: list[list[float]]) -> np.ndarray:
    """Advantages of answers of one token."""
    flat = np.array(rewards).reshape(-1, 1)
    found = estimator.estimate(flat, np.ones_like(flat, dtype=bool), None, len(rewards[0]))
    assert found.returns is None
    return found.advantages.reshape(len(rewards), -1)


def test_grpo_by_hand() -> None:
    """1, 2, 6: mean 3, sample variance (4 + 1 + 9) / 2 = 7. Equal rewards have advantage 0."""
    found = of_answers(GroupRelative(), [[1, 2, 6], [4, 4, 4]])
    np.testing.assert_allclose(found, [[-2 / (7**0.5 + 1e-4), -1 / (7**0.5 + 1e-4), 3 / (7**0.5 + 1e-4)], [0, 0, 0]])


def test_rloo_by_hand() -> None:
    """1, 2, 6: the others' means are 4, 3.5 and 1.5."""
    np.testing.assert_allclose(of_answers(GroupRelative("others", None), [[1, 2, 6]]), [[-3, -1.5, 4.5]])


def test_dr_grpo_by_hand() -> None:
    np.testing.assert_allclose(of_answers(GroupRelative("mean", None), [[1, 2, 6]]), [[-2, -1, 3]])


def test_a_scale_of_the_whole_rollout() -> None:
    """Differences -1, 1, -3, 3: mean 0, sample variance 20 / 3."""
    found = of_answers(GroupRelative("mean", "batch"), [[0, 2], [0, 6]])
    np.testing.assert_allclose(found, np.array([[-1, 1], [-3, 3]]) / (20 / 3) ** 0.5)


def test_an_unknown_reward_is_left_out_of_its_group() -> None:
    """1 and 3 are known: mean 2; for each the other is the rest. With one known, nothing can be compared."""
    np.testing.assert_allclose(of_answers(GroupRelative("mean", None), [[1, NAN, 3]]), [[-1, 0, 1]])
    np.testing.assert_allclose(of_answers(GroupRelative("others", None), [[1, NAN, 3]]), [[-2, 0, 2]])
    for baseline in ("mean", "others"):
        np.testing.assert_allclose(of_answers(GroupRelative(baseline, None), [[NAN, 5]]), [[0, 0]])  # type: ignore[arg-type]


def test_every_token_has_its_answers_advantage() -> None:
    """Rewards of tokens are summed: 1 - .5 and 2; the mean is 1.25."""
    rewards, mask = full([-0.5, 1], [2])
    found = GroupRelative("mean", None).estimate(rewards, mask, None, 2)
    np.testing.assert_allclose(found.advantages, [[-0.75, -0.75], [0.75, 0]])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rloo_is_a_multiple_of_dr_grpo(seed: int) -> None:
    """R - mean of the others = K / (K - 1) * (R - mean of all)."""
    rewards = np.random.default_rng(seed).normal(size=(3, 4)).tolist()
    np.testing.assert_allclose(
        of_answers(GroupRelative("others", None), rewards), 4 / 3 * of_answers(GroupRelative("mean", None), rewards)
    )


# ---------------------------------------------------------------- returns to go


def test_discounted_sums_by_hand() -> None:
    np.testing.assert_allclose(discounted_sums(np.array([[1.0, 2.0, 4.0]]), 0.5), [[3, 4, 4]])


def test_returns_to_go() -> None:
    rewards, mask = full([1, 2], [NAN])
    plain = ReturnsToGo(whiten=False).estimate(rewards, mask, None, 1)
    np.testing.assert_allclose(plain.advantages, [[3, 2], [0, 0]])
    whitened = ReturnsToGo().estimate(rewards, mask, None, 1)
    np.testing.assert_allclose(whitened.advantages, [[0.5**0.5, -(0.5**0.5)], [0, 0]])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (GAE, {"gamma": 1.5}, "^GAE: gamma is 1.5; accepted is a number from 0 to 1$"),
        (GAE, {"lam": -0.1}, "^GAE: lam is -0.1; accepted is a finite number 0 or greater$"),
        (GAE, {"whiten": 1}, "^GAE: whiten is 1; accepted are True and False$"),
        (ReturnsToGo, {"gamma": 2}, "^ReturnsToGo: gamma is 2; accepted is a number from 0 to 1$"),
        (GroupRelative, {"baseline": "median"}, "^GroupRelative: baseline is 'median'; accepted are 'mean', 'others'$"),
        (GroupRelative, {"scale": "token"}, "^GroupRelative: scale is 'token'; accepted are 'group', 'batch', None$"),
    ],
)
def test_a_wrong_option(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)
