from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from xrlhf.errors import ConfigError
from xrlhf.losses.binary import BinaryLoss
from xrlhf.losses.objective import TargetObjective
from xrlhf.registry import LOSSES

NAN = math.nan
ONE = torch.ones(1, 1, dtype=torch.bool)


def test_single_responses_by_hand() -> None:
    """s = log 3, sigmoid 3/4: good costs log(4/3) with slope -1/4, bad log 4 with slope 3/4."""
    scores = torch.full((2, 1), math.log(3), requires_grad=True)
    loss = BinaryLoss()(scores, ONE.expand(2, 1), torch.tensor([[1.0], [0.0]]))
    assert_close(loss, torch.tensor([math.log(4 / 3), math.log(4)]))
    loss.sum().backward()
    assert_close(scores.grad, torch.tensor([[-0.25], [0.75]]))


def test_weights_and_mean_by_hand() -> None:
    """Scores 0: log 2 each; weights 3 and 1 on one good and one bad, a third unrated: mean 2 log 2."""
    scores = torch.zeros(1, 3, requires_grad=True)
    loss = BinaryLoss(positive_weight=3)(scores, torch.ones(1, 3, dtype=torch.bool), torch.tensor([[1.0, 0.0, NAN]]))
    assert_close(loss, torch.tensor([2 * math.log(2)]))
    loss.sum().backward()
    assert_close(scores.grad, torch.tensor([[-0.75, 0.25, 0.0]]))


def test_a_threshold_turns_ratings_into_labels() -> None:
    """Three stars are not above 3, four are."""
    compared = BinaryLoss(threshold=3).compared(
        torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), torch.tensor([[3.0, 4.0, NAN]])
    )
    assert compared.goals.tolist() == [[0, 1, 0]]
    assert compared.counted.tolist() == [[True, True, False]]


def test_extreme_scores_stay_finite() -> None:
    scores = torch.tensor([[1e4, -1e4, -1e4, NAN]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    loss = BinaryLoss()(scores, mask, torch.tensor([[1.0, 0.0, 1.0, 1.0]]))
    assert_close(loss, torch.tensor([1e4 / 3]))
    loss.sum().backward()
    assert_close(scores.grad, torch.tensor([[0.0, 0.0, -1 / 3, 0.0]]))


@given(data=st.data())
def test_agrees_with_a_plain_loop(scored_groups: st.SearchStrategy, data: st.DataObject) -> None:
    groups = data.draw(scored_groups)
    expected = []
    for scores, mask, ratings in zip(groups.scores, groups.mask, groups.ratings, strict=True):
        losses = [
            0.5 * math.log1p(math.exp(-score)) if rating > 2 else 2 * math.log1p(math.exp(score))
            for score, exists, rating in zip(scores, mask, ratings, strict=True)
            if exists and not math.isnan(rating)
        ]
        expected.append(sum(losses) / len(losses) if losses else 0.0)
    loss = BinaryLoss(threshold=2, positive_weight=0.5, negative_weight=2)(*groups.tensors())
    assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 4, generator=generator) < 0.8
    targets = torch.randint(0, 2, (3, 4, 2), generator=generator).double()
    targets[1, 1] = NAN
    assert torch.autograd.gradcheck(lambda x: BinaryLoss(positive_weight=0.4)(x, mask, targets), (outputs,))


def test_label_accuracy() -> None:
    """Right, wrong and undecided: (1 + 0 + 1/2) / 3; the second group has no label."""
    statistics = BinaryLoss().statistics(
        torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]]),
        torch.ones(2, 3, dtype=torch.bool),
        torch.tensor([[1.0, 0.0, 1.0], [NAN, NAN, NAN]]),
    )
    assert statistics["label_acc"].values.tolist()[0] == 0.5
    assert statistics["label_acc"].counted.tolist() == [True, False]


def test_labels_of_one_kind_are_named() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert BinaryLoss().problem(mask, torch.tensor([[0.0, 1.0]])) is None
    assert BinaryLoss().problem(mask, torch.tensor([[2.0, 5.0]])) == (
        "all ratings (from 2 to 5) are above threshold=0.5: set threshold between those of bad and of good responses"
    )
    assert "are not above threshold=0.5" in str(BinaryLoss().problem(mask, torch.tensor([[0.0, NAN]])))
    assert BinaryLoss().problem(mask, torch.full((1, 2), NAN)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": NAN}, "threshold is nan; accepted is a finite number$"),
        ({"positive_weight": -1}, "positive_weight is -1; accepted is a finite number 0 or greater"),
        ({"negative_weight": "1"}, "negative_weight is '1'; accepted is a finite number 0 or greater"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^BinaryLoss: {message}"):
        BinaryLoss(**options)


def test_a_recipe_builds_it_by_name() -> None:
    loss = LOSSES.build({"type": "BinaryLoss", "threshold": 3})
    assert repr(loss) == "BinaryLoss(threshold=3, positive_weight=1, negative_weight=1)"
    assert isinstance(loss, TargetObjective)
    assert loss.usable(torch.ones(2, 1, dtype=torch.bool), torch.tensor([[1.0], [NAN]])).tolist() == [True, False]
