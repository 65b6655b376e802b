from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from xrlhf.errors import ConfigError
from xrlhf.losses.focal import FocalRankingLoss
from xrlhf.losses.ranking import RankingLoss
from xrlhf.registry import LOSSES

NAN = math.nan


def all_present(scores: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones(scores.shape, dtype=torch.bool), torch.full(scores.shape, NAN)


def focal(d: float, gamma: float) -> float:
    """The published form, term by term, in float64."""
    sigmoid = 1 / (1 + math.exp(-d))
    return (1 - 2 * max(sigmoid - 0.5, 0.0)) ** gamma * -math.log(sigmoid)


def test_pair_by_hand() -> None:
    """d = log 3: sigmoid 3/4, weight (1 - 2/4)^2 = 1/4, loss = log(4/3) / 4.

    Gradient with gamma 2: -w (1 - s + gamma * s * log(1/s)) = -1/4 (1/4 + 2 * 3/4 * log(4/3)) = -.1703808.
    """
    scores = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    loss = FocalRankingLoss()(scores, *all_present(scores))
    assert_close(loss, torch.tensor([math.log(4 / 3) / 4]))
    loss.sum().backward()
    expected = -(1 / 4 + 2 * 3 / 4 * math.log(4 / 3)) / 4
    assert expected == pytest.approx(-0.1703808, abs=1e-7)
    assert_close(scores.grad, torch.tensor([[expected, -expected]]))


def test_is_bradley_terry_for_pairs_not_ranked_right() -> None:
    scores = torch.tensor([[0.0, 0.0], [-0.1, 0.0], [-3.0, 2.0], [-50.0, 50.0]], requires_grad=True)
    focal_loss = FocalRankingLoss()(scores, *all_present(scores))
    plain_loss = RankingLoss()(scores, *all_present(scores))
    assert torch.equal(focal_loss, plain_loss)
    (focal_gradient,) = torch.autograd.grad(focal_loss.sum(), scores)
    (plain_gradient,) = torch.autograd.grad(plain_loss.sum(), scores)
    assert torch.equal(focal_gradient, plain_gradient)


@given(data=st.data())
def test_gamma_zero_is_bradley_terry(scored_groups: st.SearchStrategy, data: st.DataObject) -> None:
    groups = data.draw(scored_groups).tensors()
    assert torch.equal(FocalRankingLoss(gamma=0)(*groups), RankingLoss()(*groups))


@given(data=st.data(), gamma=st.sampled_from([0.5, 1.0, 2.0, 3.5]))
def test_agrees_with_a_plain_loop(scored_groups: st.SearchStrategy, data: st.DataObject, gamma: float) -> None:
    groups = data.draw(scored_groups)
    expected = []
    for group, scores in enumerate(groups.scores):
        losses = [focal(scores[i] - scores[j], gamma) for i, j in groups.pairs(group)]
        expected.append(sum(losses) / len(losses) if losses else 0.0)
    # The plain form cancels for a large d, in float64 by about 1e-16 inside the power: hence the absolute tolerance.
    assert_close(
        FocalRankingLoss(gamma)(*groups.tensors()), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradient_flows_through_the_weight_as_in_the_public_form(gamma: float) -> None:
    scores = torch.tensor([[2.0, 0.5, 1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(FocalRankingLoss(gamma)(scores, *all_present(scores)).sum(), scores)
    losses = []
    for i in range(4):
        for j in range(i + 1, 4):
            probability = torch.sigmoid(scores[0, i] - scores[0, j])
            weight = (1 - 2 * torch.relu(probability - 0.5)) ** gamma
            losses.append(-weight * torch.log(probability))
    (expected,) = torch.autograd.grad(torch.stack(losses).mean(), scores)
    assert_close(gradient, expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 8.0])
def test_extreme_scores_stay_finite(gamma: float) -> None:
    scores = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [30.0, 0.0]], requires_grad=True)
    loss = FocalRankingLoss(gamma)(scores, *all_present(scores))
    assert loss.tolist()[:2] == [0, 2e4]
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad.tolist()[:2] == [[0, 0], [-1, 1]]


def test_float32_does_not_cancel_for_sure_pairs() -> None:
    """d = 20: w = (2 sigmoid(-20))^2 and loss = w * log(1 + e^-20), about 3.5e-26; the published form gives 0 there."""
    scores = torch.tensor([[20.0, 0.0]])
    expected = (2 / (1 + math.exp(20))) ** 2 * math.log1p(math.exp(-20))
    assert float(FocalRankingLoss()(scores, *all_present(scores))[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@given(data=st.data())
def test_gradient_is_finite_and_zero_where_absent(
    scored_groups: st.SearchStrategy, gamma: float, data: st.DataObject
) -> None:
    scores, mask, ratings = data.draw(scored_groups).tensors()
    scores.requires_grad_()
    FocalRankingLoss(gamma)(scores, mask, ratings).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert not scores.grad[~mask].any()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradcheck(gamma: float) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(4, 5, generator=generator) < 0.8
    ratings = torch.randint(1, 4, (4, 5), generator=generator).double()
    loss_fn = FocalRankingLoss(gamma)
    assert torch.autograd.gradcheck(lambda x: loss_fn(x, mask, ratings), (scores,))


def test_gradient_steps_at_zero_difference() -> None:
    """Just above 0: -(1 + gamma log 2) / 2 = -1.1931472 for gamma 2; at 0: -1/2, as the docstring says."""
    scores = torch.tensor([[1e-9, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(FocalRankingLoss()(scores, *all_present(scores)).sum(), scores)
    assert gradient[:, 0].tolist() == pytest.approx([-1.1931472, -0.5], abs=1e-7)


def test_ties_in_ratings_are_left_out() -> None:
    scores, mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool)
    loss = FocalRankingLoss()(scores, mask, torch.tensor([[4.0, 4.0], [4.0, NAN]]))
    assert_close(loss, torch.tensor([0.0, focal(1.0, 2.0)]))


def test_wrong_gamma_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"FocalRankingLoss: gamma is -0.5; accepted is a finite number 0 or greater"):
        FocalRankingLoss(gamma=-0.5)


def test_recipe_builds_it_by_name() -> None:
    loss_fn = LOSSES.build({"type": "FocalRankingLoss"})
    assert isinstance(loss_fn, FocalRankingLoss)
    assert repr(loss_fn) == "FocalRankingLoss(gamma=2)"
