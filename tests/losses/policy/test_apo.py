from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xrlhf.losses.policy import APODownLoss, APOZeroLoss, ResponseLogps

TWO = torch.ones(1, 2, dtype=torch.bool)
NUM_TOKENS = torch.tensor([[2, 4]])
BETA = math.log(3)


def value_and_gradient(loss: nn.Module, ratios: tuple[float, float] = (1.0, -1.0)) -> tuple[float, list[float]]:
    leaf = torch.tensor([ratios], dtype=torch.float64, requires_grad=True)
    reference = ResponseLogps(torch.zeros(1, 2, dtype=torch.float64), NUM_TOKENS)
    value = loss(ResponseLogps(leaf, NUM_TOKENS), reference, TWO, torch.full((1, 2), math.nan))
    value.sum().backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad[0].tolist()


def test_zero_by_hand() -> None:
    """r = log 3, -log 3, sigmoid 3/4 and 1/4: 1 - 3/4 + 1/4. The slope of a sigmoid is 3/4 * 1/4 at both."""
    value, gradient = value_and_gradient(APOZeroLoss(beta=BETA))
    assert value == pytest.approx(1 / 2)
    assert gradient == pytest.approx([-BETA * 3 / 16, BETA * 3 / 16])


def test_down_by_hand() -> None:
    """sigmoid(log 3) = 3/4, sigmoid(2 log 3) = 9/10: 3/4 + 1/10. Slopes 3/16 and 9/100."""
    value, gradient = value_and_gradient(APODownLoss(beta=BETA))
    assert value == pytest.approx(0.85)
    assert gradient == pytest.approx([BETA * (3 / 16 - 9 / 100), BETA * 9 / 100])


@settings(deadline=None)
@given(ratios=st.tuples(st.floats(-10, 10), st.floats(-10, 10)))
def test_which_way_the_probabilities_go(ratios: tuple[float, float]) -> None:
    """Zero raises the chosen and lowers the rejected answer whatever they are; down lowers the rejected one.

    Far beyond these ratios a sigmoid rounds to 1 and its slope to 0.
    """
    chosen, rejected = value_and_gradient(APOZeroLoss(beta=BETA), ratios)[1]
    assert chosen < 0 < rejected
    assert value_and_gradient(APODownLoss(beta=BETA), ratios)[1][1] > 0


def test_at_the_reference() -> None:
    """1/2 + 1/2 for both; down then lowers nothing but the rejected answer."""
    assert value_and_gradient(APOZeroLoss(), (0.0, 0.0))[0] == 1
    value, gradient = value_and_gradient(APODownLoss(beta=4), (0.0, 0.0))
    assert value == 1
    assert gradient == [0, 1]


def test_four_responses_are_six_pairs() -> None:
    """Each response is chosen against those below it and rejected against those above: 3, 2, 1, 0 of six times."""
    leaf = torch.tensor([[0.5, -1.0, 2.0, 0.0]], dtype=torch.float64)
    num_tokens = torch.ones(1, 4, dtype=torch.int64)
    value = APOZeroLoss(beta=1)(
        ResponseLogps(leaf, num_tokens),
        ResponseLogps(torch.zeros(1, 4, dtype=torch.float64), num_tokens),
        torch.ones(1, 4, dtype=torch.bool),
        torch.full((1, 4), math.nan),
    )
    s = leaf.sigmoid()[0]
    expected = (3 * (1 - s[0]) + 2 * (1 - s[1]) + (1 - s[2]) + s[1] + 2 * s[2] + 3 * s[3]) / 6
    assert value.item() == pytest.approx(expected.item())
