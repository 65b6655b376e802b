from __future__ import annotations

import math

import pytest
import torch

from xrlhf.losses.policy import CPOLoss, ResponseLogps

LOG3 = math.log(3)
BETA = LOG3 / 2


def value_and_gradient(loss: CPOLoss) -> tuple[float, list[float]]:
    """Of log-probabilities -1 over 2 tokens and -3 over 4."""
    leaf = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    value = loss(
        ResponseLogps(leaf, torch.tensor([[2, 4]])),
        None,
        torch.ones(1, 2, dtype=torch.bool),
        torch.full((1, 2), math.nan),
    )
    value.sum().backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad[0].tolist()


def test_by_hand() -> None:
    """d = log(3) / 2 * 2 = log 3: log(4/3), slope -1/4. The term: 1 / 2, slope -1 / 2."""
    value, gradient = value_and_gradient(CPOLoss(beta=BETA))
    assert value == pytest.approx(math.log(4 / 3) + 0.5)
    assert gradient == pytest.approx([-BETA / 4 - 0.5, BETA / 4])


def test_the_weight_of_the_language_model_term() -> None:
    assert value_and_gradient(CPOLoss(beta=BETA, nll_weight=0))[0] == pytest.approx(math.log(4 / 3))
    assert value_and_gradient(CPOLoss(beta=BETA, nll_weight=3))[0] == pytest.approx(math.log(4 / 3) + 1.5)


def test_smoothing_by_hand() -> None:
    """e = 1/4 at sigmoid(d) = 3/4 leaves no slope of the preference."""
    value, gradient = value_and_gradient(CPOLoss(beta=BETA, label_smoothing=0.25, nll_weight=0))
    assert value == pytest.approx(math.log(4 / 3) + LOG3 / 4)
    assert gradient == pytest.approx([0, 0], abs=1e-7)
