from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from xrlhf.losses.plackett_luce import PlackettLuceLoss
from xrlhf.losses.ranking import RankingLoss
from xrlhf.registry import LOSSES

NAN = math.nan


def all_present(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(scores.shape, dtype=torch.bool), torch.full(scores.shape, NAN, dtype=scores.dtype)


def test_three_responses_by_hand() -> None:
    """exp(s) = 3, 2, 1: the choices have the probabilities 3/6 and 2/3, so the loss is log(2 * 3/2) / 2 = log(3) / 2.

    Gradient of each choice, probability minus 1 for what was chosen, halved: first 1/2 - 1, second 1/3 + (2/3 - 1),
    third 1/6 + 1/3.
    """
    scores = torch.tensor([[3.0, 2.0, 1.0]]).log().requires_grad_()
    loss = PlackettLuceLoss()(scores, *all_present(scores))
    assert_close(loss, torch.tensor([math.log(3) / 2]))
    loss.sum().backward()
    assert_close(scores.grad, torch.tensor([[-1 / 4, 0.0, 1 / 4]]))


def test_a_pair_is_bradley_terry() -> None:
    scores = torch.tensor([[0.3, -1.2], [2.0, 5.0]], requires_grad=True)
    loss, expected = PlackettLuceLoss()(scores, *all_present(scores)), RankingLoss()(scores, *all_present(scores))
    assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    (wanted,) = torch.autograd.grad(expected.sum(), scores)
    assert_close(gradient, wanted)


def test_a_stage_of_equals_by_hand() -> None:
    """Ratings 2, 2, 1, exp(s) = 3, 1, 2. Sums: both equals 4, the rest 2. Loss: -log(2! * 3 * 1 / ((2 + 4) * (2 + 2))).

    There is one stage beside the last. dloss/ds, factors of S_D 1 and 1/2: for the first 3/6 + 1.5/4 - 1 = -1/8, the
    second 1/6 + .5/4 - 1 = -17/24, the third 2/6 + 2/4 = 5/6.
    """
    scores = torch.tensor([[3.0, 1.0, 2.0]]).log().requires_grad_()
    mask, ratings = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[2.0, 2.0, 1.0]])
    loss = PlackettLuceLoss()(scores, mask, ratings)
    assert_close(loss, torch.tensor([math.log(24 / 6)]))
    loss.sum().backward()
    assert_close(scores.grad, torch.tensor([[-1 / 8, -17 / 24, 5 / 6]]))


def test_equal_scores_choose_a_set_by_chance() -> None:
    """Two of five equals ahead of the rest: 1 of (5 choose 2) = 10 sets. Then the rest is one stage, the last."""
    mask, ratings = torch.ones(1, 5, dtype=torch.bool), torch.tensor([[3.0, 3.0, 1.0, 1.0, 1.0]])
    assert_close(PlackettLuceLoss()(torch.zeros(1, 5), mask, ratings), torch.tensor([math.log(10)]))


def test_the_approximation_is_exact_where_equals_score_alike() -> None:
    """Against the sum over both orders of the two equals: exp(s) = 2, 2, 1."""
    weights = [2.0, 2.0, 1.0]
    exact = sum(
        weights[a] / sum(weights) * weights[b] / (sum(weights) - weights[a]) for a, b in itertools.permutations([0, 1])
    )
    scores, mask = torch.tensor([weights]).log(), torch.ones(1, 3, dtype=torch.bool)
    assert_close(PlackettLuceLoss()(scores, mask, torch.tensor([[2.0, 2.0, 1.0]])), torch.tensor([-math.log(exact)]))


def test_groups_without_a_preference_give_zero_and_zero_gradient() -> None:
    scores = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    loss = PlackettLuceLoss()(scores, mask, torch.tensor([[3.0, 3.0], [NAN, NAN], [NAN, NAN]]))
    assert loss.tolist() == [0, 0, 0]
    loss.sum().backward()
    assert scores.grad is not None
    assert not scores.grad.any()


@pytest.mark.parametrize("absent", [NAN, math.inf, -math.inf, 1e38])
def test_absent_responses_touch_neither_value_nor_gradient(absent: float) -> None:
    alone = torch.tensor([[0.3, -0.2, 0.9]], requires_grad=True)
    beside = torch.tensor([[absent, 0.3, absent, -0.2, 0.9]], requires_grad=True)
    ratings = torch.tensor([[4.0, 4.0, 3.0]])
    expected = PlackettLuceLoss()(alone, torch.ones(1, 3, dtype=torch.bool), ratings)
    mask = torch.tensor([[False, True, False, True, True]])
    loss = PlackettLuceLoss()(beside, mask, torch.tensor([[absent, 4.0, absent, 4.0, 3.0]]))
    assert_close(loss, expected)
    expected.sum().backward()
    loss.sum().backward()
    assert alone.grad is not None
    assert beside.grad is not None
    assert_close(beside.grad[:, [1, 3, 4]], alone.grad)
    assert beside.grad[:, [0, 2]].tolist() == [[0, 0]]


def test_extreme_scores_stay_finite() -> None:
    """Far right: 0. Far wrong: 2e4 for each of two choices from the best, the mean of 2e4 and 1e4 at 1e4 apart."""
    scores = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]], requires_grad=True)
    loss = PlackettLuceLoss()(scores, *all_present(scores))
    assert loss.tolist() == [0, 1.5e4]
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0, 0, 0], [-0.5, -0.5, 1.0]]


def plain(scores: list[float], stages: list[list[int]]) -> float:
    """The formula of the docstring, spelled out."""
    total = 0.0
    for number, members in enumerate(stages[:-1]):
        rest = sum(math.exp(scores[j]) for later in stages[number + 1 :] for j in later)
        own = sum(math.exp(scores[j]) for j in members)
        total -= math.lgamma(len(members) + 1) + sum(scores[j] for j in members)
        total += sum(math.log(rest + (1 - place / len(members)) * own) for place in range(len(members)))
    return total / max(1, len(stages) - 1)


@given(data=st.data())
def test_agrees_with_the_plain_formula(scored_groups: st.SearchStrategy, data: st.DataObject) -> None:
    groups = data.draw(scored_groups)
    expected = []
    for scores, mask, ratings in zip(groups.scores, groups.mask, groups.ratings, strict=True):
        stages: list[list[int]] = []
        for i in [i for i, exists in enumerate(mask) if exists]:
            if stages and ratings[stages[-1][0]] == ratings[i]:
                stages[-1].append(i)
            else:
                stages.append([i])
        expected.append(plain(scores, stages) if stages else 0.0)
    loss = PlackettLuceLoss()(*groups.tensors())
    assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@given(data=st.data())
def test_gradient_is_finite_and_sums_to_zero(scored_groups: st.SearchStrategy, data: st.DataObject) -> None:
    scores, mask, ratings = data.draw(scored_groups).tensors()
    scores.requires_grad_()
    PlackettLuceLoss()(scores, mask, ratings).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert not scores.grad[~mask].any()
    assert_close(scores.grad.sum(dim=1), torch.zeros(len(mask), dtype=torch.float64), atol=1e-9, rtol=0)


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(4, 5, generator=generator) < 0.8
    ratings = torch.tensor([[3, 3, 2, 2, 1], [5, 4, 3, 2, 1], [2, 2, 2, 1, 1], [NAN] * 5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: PlackettLuceLoss()(x, mask, ratings), (scores,))


def test_top_accuracy() -> None:
    """The best of the first group is found, of the second not; either of two equals will do; the last has no pair."""
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 0.0]])
    mask = torch.tensor([[True] * 3] * 3 + [[True, True, False]])
    ratings = torch.tensor([[3.0, 2.0, 1.0], [NAN] * 3, [2.0, 2.0, 1.0], [1.0, 1.0, NAN]])
    top = PlackettLuceLoss().statistics(scores, mask, ratings)["top_acc"]
    assert top.values.tolist()[:3] == [1, 0, 1]
    assert top.counted.tolist() == [True, True, True, False]


def test_a_recipe_builds_it_and_it_says_what_it_needs() -> None:
    loss = LOSSES.build({"type": "PlackettLuceLoss"})
    assert isinstance(loss, PlackettLuceLoss)
    assert not list(loss.parameters())
    mask, ratings = torch.ones(2, 2, dtype=torch.bool), torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    assert loss.usable(mask, ratings).tolist() == [True, False]
    assert "two or more responses" in loss.needs
