from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from xrlhf.errors import ConfigError
from xrlhf.losses.objective import TargetObjective
from xrlhf.losses.regression import RegressionLoss
from xrlhf.registry import LOSSES

NAN = math.nan
ONE = torch.ones(1, 1, dtype=torch.bool)


def test_single_responses_by_hand() -> None:
    """Scores 3 and -1, ratings 1 and 1: errors 2 and -2, losses 4, gradients 2 * t = 4 and -4."""
    scores = torch.tensor([[3.0], [-1.0]], requires_grad=True)
    loss = RegressionLoss()(scores, ONE.expand(2, 1), torch.ones(2, 1))
    assert loss.tolist() == [4, 4]
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[4], [-4]]


def test_the_mean_of_a_group_is_over_rated_responses() -> None:
    """Errors 1 and 3, the third response unrated, the fourth absent: (1 + 9) / 2, gradients 2 / 2 and 6 / 2."""
    scores = torch.tensor([[1.0, 3.0, 7.0, NAN]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    loss = RegressionLoss()(scores, mask, torch.tensor([[0.0, 0.0, NAN, 5.0]]))
    assert loss.tolist() == [5]
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[1, 3, 0, 0]]


def test_huber_by_hand() -> None:
    """delta 1: an error of .5 costs .25 with slope 1; one of 3 costs 1 * (6 - 1) = 5 with slope 2; at 1 both meet."""
    scores = torch.tensor([[0.5], [3.0], [-3.0], [1.0]], requires_grad=True)
    loss = RegressionLoss(huber_delta=1.0)(scores, ONE.expand(4, 1), torch.zeros(4, 1))
    assert loss.tolist() == [0.25, 5, 5, 1]
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[1], [2], [-2], [2]]


def test_a_rating_range_is_mapped_to_zero_and_one() -> None:
    """1 to 5: a rating of 4 is .75; a score of .25 is off by .5."""
    loss_fn = RegressionLoss(rating_range=(1, 5))
    loss = loss_fn(torch.tensor([[0.25]]), ONE, torch.tensor([[4.0]]))
    assert loss.tolist() == [0.25]
    ends = loss_fn.compared(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1.0, 5.0]]))
    assert ends.goals.tolist() == [[0, 1]]


def test_attributes_by_hand() -> None:
    """Errors 1, 2 (one value missing) and 2: (1 + 4 + 4) / 3 = 3; each gradient is 2 * error / 3."""
    outputs = torch.tensor([[[1.0, 2.0], [9.0, 2.0], [NAN, NAN]]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    targets = torch.tensor([[[0.0, 0.0], [NAN, 0.0], [0.0, 0.0]]])
    loss = RegressionLoss()(outputs, mask, targets)
    assert_close(loss, torch.tensor([3.0]))
    loss.sum().backward()
    assert_close(outputs.grad, torch.tensor([[[2 / 3, 4 / 3], [0, 4 / 3], [0, 0]]]))


def test_a_group_without_a_target_gives_zero_and_zero_gradient() -> None:
    scores = torch.tensor([[1.0, 2.0], [NAN, NAN]], requires_grad=True)
    mask = torch.tensor([[True, True], [False, False]])
    loss = RegressionLoss(huber_delta=0.5)(scores, mask, torch.tensor([[NAN, NAN], [1.0, 1.0]]))
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert scores.grad is not None
    assert not scores.grad.any()
    assert RegressionLoss().usable(mask, torch.full((2, 2), NAN)).tolist() == [False, False]
    assert RegressionLoss().usable(mask, torch.tensor([[NAN, 1.0], [1.0, 1.0]])).tolist() == [True, False]


@given(data=st.data())
def test_agrees_with_a_plain_loop(scored_groups: st.SearchStrategy, data: st.DataObject) -> None:
    groups = data.draw(scored_groups)
    for delta in (None, 0.7):
        expected = []
        for scores, mask, ratings in zip(groups.scores, groups.mask, groups.ratings, strict=True):
            losses = []
            for score, exists, rating in zip(scores, mask, ratings, strict=True):
                if exists and not math.isnan(rating):
                    error = abs(score - (rating - 1) / 4)
                    losses.append(error**2 if delta is None or error <= delta else delta * (2 * error - delta))
            expected.append(sum(losses) / len(losses) if losses else 0.0)
        value = RegressionLoss(huber_delta=delta, rating_range=(1, 5))(*groups.tensors())
        assert_close(value, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, {"huber_delta": 0.5}, {"rating_range": (1, 3)}])
def test_gradcheck(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 4, generator=generator) < 0.8
    targets = torch.randint(1, 4, (3, 4, 2), generator=generator).double()
    targets[0, 0, 1] = NAN
    assert torch.autograd.gradcheck(lambda x: RegressionLoss(**options)(x, mask, targets), (outputs,))


def test_mse_is_the_squared_error_whatever_the_loss() -> None:
    statistics = RegressionLoss(huber_delta=0.1).statistics(
        torch.tensor([[3.0, 1.0], [1.0, 1.0]]),
        torch.ones(2, 2, dtype=torch.bool),
        torch.tensor([[1.0, NAN], [NAN] * 2]),
    )
    assert statistics["mse"].values.tolist()[0] == 4
    assert statistics["mse"].counted.tolist() == [True, False]


def test_half_precision_is_raised() -> None:
    loss = RegressionLoss()(torch.ones(1, 1, dtype=torch.bfloat16), ONE, torch.zeros(1, 1))
    assert loss.dtype == torch.float32


def test_ratings_outside_of_the_range_are_named() -> None:
    loss, mask = RegressionLoss(rating_range=(0, 4)), torch.ones(1, 2, dtype=torch.bool)
    assert loss.problem(mask, torch.tensor([[0.0, 4.0]])) is None
    assert loss.problem(mask, torch.tensor([[NAN, 5.0]])) == "a rating is 5, outside of rating_range=(0, 4)"
    assert RegressionLoss().problem(mask, torch.tensor([[NAN, 5.0]])) is None


def test_wrong_shapes_and_dtypes_are_named() -> None:
    two = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"shapes are \(1, 2\), \(1, 2, 3\) and \(1, 2\)"):
        RegressionLoss()(torch.zeros(1, 2), two, torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match=r"\(groups, responses, attributes\)"):
        RegressionLoss()(torch.zeros(2), two, torch.zeros(2))
    with pytest.raises(ValueError, match=r"mask must be a bool tensor.*torch\.int64"):
        RegressionLoss()(torch.zeros(1, 2), two.long(), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"floating point, not torch\.int64 and torch\.float32"):
        RegressionLoss()(torch.zeros(1, 2, dtype=torch.int64), two, torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"huber_delta": 0}, "huber_delta is 0; accepted is a finite number greater than 0"),
        ({"rating_range": (5, 1)}, r"rating_range is \(5, 1\); accepted is the lowest and the highest rating"),
        ({"rating_range": 5}, "rating_range is 5; accepted is the lowest and the highest rating"),
        ({"rating_range": (1, 2, 3)}, r"rating_range is \(1, 2, 3\); accepted is the lowest and the highest rating"),
        ({"rating_range": (1, math.inf)}, "rating_range is inf; accepted is a finite number"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^RegressionLoss: {message}"):
        RegressionLoss(**options)


def test_a_recipe_builds_it_by_name() -> None:
    loss = LOSSES.build({"type": "RegressionLoss", "rating_range": [0, 4]})
    assert repr(loss) == "RegressionLoss(huber_delta=None, rating_range=(0.0, 4.0))"
    assert isinstance(loss, TargetObjective)
    assert "RankingLoss" in loss.needs
