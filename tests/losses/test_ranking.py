from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from xrlhf.errors import ConfigError
from xrlhf.losses.ranking import RankingLoss
from xrlhf.registry import LOSSES

NAN = math.nan


def softplus(x: float) -> float:
    """log(1 + exp(x)), the slow reference for -log sigmoid(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def all_present(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(scores.shape, dtype=torch.bool), torch.full(scores.shape, NAN)


def test_pair_by_hand() -> None:
    """d = log 3 gives sigmoid(d) = 3/4, so loss = log(4/3) and dloss/dc = -1/4, dloss/dr = +1/4."""
    scores = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    loss = RankingLoss()(scores, *all_present(scores))
    assert_close(loss, torch.tensor([math.log(4 / 3)]))
    loss.sum().backward()
    assert_close(scores.grad, torch.tensor([[-0.25, 0.25]]))


def test_equal_scores_give_log_two() -> None:
    scores = torch.zeros(3, 2)
    assert_close(RankingLoss()(scores, *all_present(scores)), torch.full((3,), math.log(2)))


def test_three_responses_by_hand() -> None:
    """Scores log 3, 0, 0: d = log 3, log 3, 0; the mean of log(4/3), log(4/3), log 2 is log(32/9) / 3.

    Gradient, each pair having weight 1/3: first -(1/4 + 1/4)/3 = -1/6; second (+1/4 - 1/2)/3 = -1/12; third
    (+1/4 + 1/2)/3 = +1/4.
    """
    scores = torch.tensor([[math.log(3), 0.0, 0.0]], requires_grad=True)
    loss = RankingLoss()(scores, *all_present(scores))
    assert_close(loss, torch.tensor([math.log(32 / 9) / 3]))
    loss.sum().backward()
    assert_close(scores.grad, torch.tensor([[-1 / 6, -1 / 12, 1 / 4]]))


def test_margin_by_hand() -> None:
    """d = 0, ratings 5 and 3, scale 0.5: margin 1, loss = log(1 + e) = 1.3132617, gradient -sigmoid(1) = -.7310586."""
    scores = torch.zeros(1, 2, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = RankingLoss(margin="ratings", margin_scale=0.5)(scores, mask, torch.tensor([[5.0, 3.0]]))
    assert_close(loss, torch.tensor([1.3132617]))
    loss.sum().backward()
    assert_close(scores.grad, torch.tensor([[-0.7310586, 0.7310586]]))


def test_margin_is_zero_where_a_rating_is_missing() -> None:
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    mask = torch.ones(3, 2, dtype=torch.bool)
    ratings = torch.tensor([[5.0, NAN], [NAN, 3.0], [NAN, NAN]])
    assert_close(RankingLoss(margin="ratings")(scores, mask, ratings), torch.full((3,), softplus(-1.0)))


def test_ratings_do_not_matter_without_margin_unless_they_tie() -> None:
    scores, mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool)
    ratings = torch.tensor([[5.0, 3.0], [4.0, 4.0]])
    assert_close(RankingLoss()(scores, mask, ratings), torch.tensor([softplus(-1.0), 0.0]))


def test_tie_leaves_the_other_pairs_and_their_count() -> None:
    """Ratings 5, 5, 1 and scores 1, 0, 0: the pairs are (0,2) with d = 1 and (1,2) with d = 0."""
    scores, mask = torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool)
    loss = RankingLoss()(scores, mask, torch.tensor([[5.0, 5.0, 1.0]]))
    assert_close(loss, torch.tensor([(softplus(-1.0) + math.log(2)) / 2]))


def test_group_without_a_pair_gives_zero_and_zero_gradient() -> None:
    scores = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    ratings = torch.tensor([[3.0, 3.0], [NAN, NAN], [NAN, NAN]])
    loss = RankingLoss()(scores, mask, ratings)
    assert loss.tolist() == [0, 0, 0]
    loss.sum().backward()
    assert scores.grad is not None
    assert not scores.grad.any()


@pytest.mark.parametrize("margin", ["none", "ratings"])
@pytest.mark.parametrize("absent", [NAN, math.inf, -math.inf, 1e38])
def test_absent_responses_touch_neither_value_nor_gradient(margin: str, absent: float) -> None:
    loss_fn = RankingLoss(margin=margin)  # type: ignore[arg-type]
    alone = torch.tensor([[0.3, -0.2]], requires_grad=True)
    beside = torch.tensor([[0.3, absent, -0.2, absent]], requires_grad=True)
    expected = loss_fn(alone, torch.ones(1, 2, dtype=torch.bool), torch.tensor([[4.0, 3.0]]))
    loss = loss_fn(beside, torch.tensor([[True, False, True, False]]), torch.tensor([[4.0, absent, 3.0, absent]]))
    assert_close(loss, expected)
    expected.sum().backward()
    loss.sum().backward()
    assert alone.grad is not None
    assert beside.grad is not None
    assert_close(beside.grad[:, [0, 2]], alone.grad)
    assert beside.grad[:, [1, 3]].tolist() == [[0, 0]]


def test_extreme_scores_stay_finite() -> None:
    """d = +-2e4: loss 0 and 2e4, gradient 0 and 1."""
    scores = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = RankingLoss()(scores, *all_present(scores))
    assert loss.tolist() == [0, 2e4]
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0, 0], [-1, 1]]


def test_a_broken_score_shows_in_its_own_group_only() -> None:
    scores = torch.tensor([[NAN, 0.0], [1.0, 0.0]])
    loss = RankingLoss()(scores, *all_present(scores))
    assert loss.isnan().tolist() == [True, False]


def test_label_smoothing_by_hand() -> None:
    """d = log 3, e = .1: .9 log(4/3) + .1 log 4 = .3975460; dloss/dd = -.9 / 4 + .1 * 3 / 4 = -.15."""
    scores = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    loss = RankingLoss(label_smoothing=0.1)(scores, *all_present(scores))
    assert_close(loss, torch.tensor([0.9 * math.log(4 / 3) + 0.1 * math.log(4)]))
    loss.sum().backward()
    assert_close(scores.grad, torch.tensor([[-0.15, 0.15]]))


def test_a_smoothed_loss_is_least_where_sigmoid_is_one_minus_e() -> None:
    """sigmoid(log 9) = .9: no pull for e = .1, and back beyond it."""
    scores = torch.tensor([[math.log(9), 0.0], [math.log(9) + 1, 0.0]], dtype=torch.float64, requires_grad=True)
    RankingLoss(label_smoothing=0.1)(scores, *all_present(scores)).sum().backward()
    assert scores.grad is not None
    assert_close(scores.grad[0], torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    assert scores.grad[1, 0] > 0.01


def test_smoothing_counts_from_the_margin() -> None:
    """d = 1 with a margin of 1 is 0: both sides cost log 2."""
    scores, mask = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    loss = RankingLoss(margin="ratings", label_smoothing=0.3)(scores, mask, torch.tensor([[2.0, 1.0]]))
    assert_close(loss, torch.tensor([math.log(2)]))


def test_what_it_can_use() -> None:
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    ratings = torch.tensor([[2.0, 1.0], [2.0, NAN], [1.0, 1.0]])
    assert RankingLoss().usable(mask, ratings).tolist() == [True, False, False]


@given(data=st.data())
def test_agrees_with_a_plain_loop(scored_groups: st.SearchStrategy, data: st.DataObject) -> None:
    groups = data.draw(scored_groups)
    for scale in (None, 0.0, 0.3):
        expected = []
        for group, (scores, ratings) in enumerate(zip(groups.scores, groups.ratings, strict=True)):
            losses = []
            for i, j in groups.pairs(group):
                margin = 0.0 if scale is None else scale * (ratings[i] - ratings[j])
                losses.append(softplus(scores[j] - scores[i] + (0.0 if math.isnan(margin) else margin)))
            expected.append(sum(losses) / len(losses) if losses else 0.0)
        loss_fn = RankingLoss() if scale is None else RankingLoss(margin="ratings", margin_scale=scale)
        assert_close(loss_fn(*groups.tensors()), torch.tensor(expected, dtype=torch.float64))


@given(data=st.data())
def test_gradient_is_finite_and_zero_where_absent(scored_groups: st.SearchStrategy, data: st.DataObject) -> None:
    scores, mask, ratings = data.draw(scored_groups).tensors()
    scores.requires_grad_()
    RankingLoss(margin="ratings")(scores, mask, ratings).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert not scores.grad[~mask].any()
    # Only differences enter, so the gradient of a group sums to 0.
    assert_close(scores.grad.sum(dim=1), torch.zeros(len(mask), dtype=torch.float64))


@pytest.mark.parametrize(
    "loss_fn", [RankingLoss(), RankingLoss(margin="ratings", margin_scale=0.7), RankingLoss(label_smoothing=0.2)]
)
def test_gradcheck(loss_fn: RankingLoss) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(4, 5, generator=generator) < 0.8
    ratings = torch.randint(1, 4, (4, 5), generator=generator).double()
    assert torch.autograd.gradcheck(lambda x: loss_fn(x, mask, ratings), (scores,))


def test_half_precision_scores_are_computed_in_float32() -> None:
    scores = torch.tensor([[1.0, 0.5]], dtype=torch.bfloat16)
    loss = RankingLoss()(scores, *all_present(scores))
    assert loss.dtype == torch.float32
    assert_close(loss, torch.tensor([softplus(-0.5)]))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="RankingLoss: margin is 'rating'; accepted are 'none' and 'ratings'"):
        RankingLoss(margin="rating")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="RankingLoss: margin_scale is -1; accepted is a finite number 0 or greater"):
        RankingLoss(margin_scale=-1)
    message = "RankingLoss: label_smoothing is 0.5; accepted is a finite number 0 or greater and below 0.5"
    with pytest.raises(ConfigError, match=message):
        RankingLoss(label_smoothing=0.5)


def test_recipe_builds_it_by_name() -> None:
    loss_fn = LOSSES.build({"type": "RankingLoss", "margin": "ratings", "margin_scale": 0.25})
    assert isinstance(loss_fn, RankingLoss)
    assert not list(loss_fn.parameters())
    assert repr(loss_fn) == "RankingLoss(margin='ratings', margin_scale=0.25)"
