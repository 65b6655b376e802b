from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from xrlhf.errors import ConfigError
from xrlhf.losses.ranking import RankingLoss
from xrlhf.losses.ties import DavidsonLoss, RaoKupperLoss, tie_statistics
from xrlhf.registry import LOSSES

NAN = math.nan
CLASSES = (DavidsonLoss, RaoKupperLoss)
TWO = torch.ones(1, 2, dtype=torch.bool)
DECIDED, TIED = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 1.0]])


def test_davidson_by_hand() -> None:
    """d = log 4, t = 1/3: v = 1, exp(d/2) = 2, Z = 2 + 1/2 + 1 = 7/2. P(win) = 4/7, P(lose) = 1/7, P(tie) = 2/7.

    dlogZ/dd = (P(win) - P(lose)) / 2 = 3/14. Decided: 3/14 - 1/2 = -2/7. Tied: 3/14.
    """
    for ratings, loss, slope in ((DECIDED, math.log(7 / 4), -2 / 7), (TIED, math.log(7 / 2), 3 / 14)):
        scores = torch.tensor([[math.log(4), 0.0]], requires_grad=True)
        value = DavidsonLoss(tie_share=1 / 3)(scores, TWO, ratings)
        assert_close(value, torch.tensor([loss]))
        value.sum().backward()
        assert_close(scores.grad, torch.tensor([[slope, -slope]]))


def test_rao_kupper_by_hand() -> None:
    """d = log 4, t = 1/3: exp(h) = 2. P(win) = 4 / (4 + 2) = 2/3, P(lose) = 1 / (1 + 8) = 1/9, P(tie) = 2/9.

    P(tie) = (2^2 - 1) * 4 * 1 / (6 * 9) = 12/54, the same. dloss/dd decided: P(win) - 1 = -1/3. Tied: the slope of
    log(P(win) * P(lose)) is (1 - 2/3) - (1 - 1/9), so the loss's is 8/9 - 1/3 = 5/9.
    """
    for ratings, loss, slope in ((DECIDED, math.log(3 / 2), -1 / 3), (TIED, math.log(9 / 2), 5 / 9)):
        scores = torch.tensor([[math.log(4), 0.0]], requires_grad=True)
        value = RaoKupperLoss(tie_share=1 / 3)(scores, TWO, ratings)
        assert_close(value, torch.tensor([loss]))
        value.sum().backward()
        assert_close(scores.grad, torch.tensor([[slope, -slope]]))


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("share", [0.05, 1 / 3, 0.8])
def test_the_outcomes_add_up_and_equals_tie_as_often_as_asked(make: type[DavidsonLoss], share: float) -> None:
    loss = make(tie_share=share)
    differences = torch.linspace(-6, 6, 13, dtype=torch.float64)
    win, tie = loss.log_probabilities(differences)
    lose, same_tie = loss.log_probabilities(-differences)
    assert_close(win.exp() + tie.exp() + lose.exp(), torch.ones(13, dtype=torch.float64))
    assert_close(tie, same_tie)
    assert tie.exp()[6].item() == pytest.approx(share)
    assert int(tie.argmax()) == 6


def test_davidson_without_a_tie_is_bradley_terry() -> None:
    """P(win) / (P(win) + P(lose)) = sigmoid(d); and a tie share near 0 is RankingLoss."""
    differences = torch.linspace(-3, 3, 7, dtype=torch.float64)
    loss = DavidsonLoss(tie_share=0.4)
    win, lose = loss.log_probabilities(differences)[0].exp(), loss.log_probabilities(-differences)[0].exp()
    assert_close(win / (win + lose), differences.sigmoid())
    scores, none = torch.tensor([[0.7, -0.4]], dtype=torch.float64), torch.full((1, 2), NAN, dtype=torch.float64)
    plain = RankingLoss()(scores, TWO, none)
    for make in CLASSES:
        assert_close(make(tie_share=1e-9)(scores, TWO, none), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", CLASSES)
def test_the_mean_runs_over_decided_and_tied_pairs(make: type[DavidsonLoss]) -> None:
    """Ratings 2, 2, 1: the pairs (02) and (12) are decided, (01) is a tie."""
    loss, scores = make(tie_share=0.3), torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    value = loss(scores, torch.ones(1, 3, dtype=torch.bool), torch.tensor([[2.0, 2.0, 1.0]], dtype=torch.float64))
    win, tie = loss.log_probabilities(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
    assert_close(value, -(win[0] + win[1] + tie[2])[None] / 3)


@pytest.mark.parametrize("make", CLASSES)
def test_a_single_response_gives_zero(make: type[DavidsonLoss]) -> None:
    scores = torch.tensor([[1.0, NAN]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    value = make()(scores, mask, torch.tensor([[1.0, 1.0]]))
    value.sum().backward()
    assert value.tolist() == [0]
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0, 0]]
    assert make().usable(torch.cat([mask, TWO]), torch.ones(2, 2)).tolist() == [False, True]


@pytest.mark.parametrize("make", CLASSES)
def test_extreme_scores_stay_finite(make: type[DavidsonLoss]) -> None:
    scores = torch.tensor([[2e4, 0.0], [0.0, 2e4], [2e4, 0.0]], requires_grad=True)
    loss = make()(scores, TWO.expand(3, 2), torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 1.0]]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert loss[0] < 1e-3
    assert loss[1] > 9e3
    assert loss[2] > 9e3
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("make", CLASSES)
@given(data=st.data())
def test_agrees_with_a_plain_loop(
    make: type[DavidsonLoss], scored_groups: st.SearchStrategy, data: st.DataObject
) -> None:
    groups = data.draw(scored_groups)
    share = 0.25
    expected = []
    for group, (scores, mask, ratings) in enumerate(zip(groups.scores, groups.mask, groups.ratings, strict=True)):
        decided, losses = groups.pairs(group), []
        for i in range(len(scores)):
            for j in range(i + 1, len(scores)):
                if not (mask[i] and mask[j]):
                    continue
                a, b = math.exp(scores[i]), math.exp(scores[j])
                if make is DavidsonLoss:
                    v = 2 * share / (1 - share) * math.sqrt(a * b)
                    win, tie = a / (a + b + v), v / (a + b + v)
                else:
                    theta = (1 + share) / (1 - share)
                    win = a / (a + theta * b)
                    tie = (theta**2 - 1) * a * b / ((a + theta * b) * (b + theta * a))
                losses.append(-math.log(win if (i, j) in decided else tie))
                assert (i, j) in decided or ratings[i] == ratings[j]
        expected.append(sum(losses) / len(losses) if losses else 0.0)
    value = make(tie_share=share)(*groups.tensors())
    assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", CLASSES)
def test_gradcheck(make: type[DavidsonLoss]) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(4, 5, generator=generator) < 0.8
    ratings = torch.randint(1, 4, (4, 5), generator=generator).double()
    assert torch.autograd.gradcheck(lambda x: make(tie_share=0.3)(x, mask, ratings), (scores,))


def test_tie_statistics_by_hand() -> None:
    """Davidson, t = 1/2: v = 2. A tie is likeliest where exp(|d| / 2) <= 2, that is |d| <= log 4.

    At d = 0 its probability is 1/2; at d = log 16, exp(d/2) = 4, it is 2 / (4 + 1/4 + 2) = .32.
    """
    scores = torch.tensor([[1.0, 1.0, 0.0], [math.log(16), 0.0, 9.0], [1.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False], [True, True, True]])
    ratings = torch.tensor([[1.0, 1.0, NAN], [1.0, 1.0, NAN], [3.0, 2.0, 1.0]])
    found = tie_statistics(DavidsonLoss(tie_share=0.5), scores, mask, ratings)
    assert found["tie_acc"].counted.tolist() == [True, True, False]
    assert found["tie_acc"].values.tolist()[:2] == [1, 0]
    assert_close(found["tie_prob"].values[:2], torch.tensor([0.5, 0.32]))
    assert DavidsonLoss(tie_share=0.5).statistics(scores, mask, ratings).keys() == found.keys()


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("share", [0, 1, -0.1, NAN, "0.3"])
def test_wrong_shares_are_refused(make: type[DavidsonLoss], share: float) -> None:
    message = f"{make.__name__}: tie_share is .*; accepted is a finite number greater than 0 and below 1"
    with pytest.raises(ConfigError, match=message):
        make(tie_share=share)


def test_recipes_build_them_by_name() -> None:
    assert repr(LOSSES.build({"type": "DavidsonLoss", "tie_share": 0.2})) == "DavidsonLoss(tie_share=0.2)"
    assert repr(LOSSES.build({"type": "RaoKupperLoss", "tie_share": 0.2})) == "RaoKupperLoss(tie_share=0.2)"
