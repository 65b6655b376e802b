from __future__ import annotations

import math

import pytest
import torch

from xrlhf.losses.policy import IPOLoss, ResponseLogps

TWO = torch.ones(1, 2, dtype=torch.bool)
UNRATED = torch.full((1, 2), math.nan)
NUM_TOKENS = torch.tensor([[2, 4]])
REFERENCE = ResponseLogps(torch.tensor([[-2.0, -2.0]]), NUM_TOKENS)


def value_and_gradient(loss: IPOLoss, logps: tuple[float, float]) -> tuple[float, list[float]]:
    leaf = torch.tensor([logps], requires_grad=True)
    value = loss(ResponseLogps(leaf, NUM_TOKENS), REFERENCE, TWO, UNRATED)
    value.sum().backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad[0].tolist()


def test_by_hand() -> None:
    """Log-ratios 1 over 2 tokens and -1 over 4 differ by 3/4; the goal is 1 / (2 * 1/2) = 1. Slope 2 * (3/4 - 1)."""
    assert value_and_gradient(IPOLoss(beta=0.5), (-1.0, -3.0)) == (1 / 16, [-0.25, 0.125])


def test_sums_by_hand() -> None:
    """They differ by 2, beyond the goal of 1, so the pair is pulled together again: slope 2 * (2 - 1)."""
    assert value_and_gradient(IPOLoss(beta=0.5, per_token=False), (-1.0, -3.0)) == (1, [2, -2])


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_at_the_reference_and_at_the_goal(beta: float) -> None:
    """At the reference (1 / (2 beta))^2; at a difference of 1 / (2 beta) nothing, and a margin of 1/2."""
    assert value_and_gradient(IPOLoss(beta=beta), (-2.0, -2.0))[0] == pytest.approx((1 / (2 * beta)) ** 2)
    at_goal = (-2 + 2 / (2 * beta), -2.0)
    assert value_and_gradient(IPOLoss(beta=beta), at_goal)[0] == pytest.approx(0, abs=1e-10)
    policy = ResponseLogps(torch.tensor([at_goal]), NUM_TOKENS)
    statistics = IPOLoss(beta=beta).statistics(policy, REFERENCE, TWO, UNRATED)
    assert statistics["reward_margin"].values.item() == pytest.approx(0.5)
