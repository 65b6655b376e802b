from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from xrlhf.losses.policy import DPOLoss, ResponseLogps, SimPOLoss

TWO = torch.ones(1, 2, dtype=torch.bool)
UNRATED = torch.full((1, 2), math.nan)
NUM_TOKENS = torch.tensor([[2, 4]])
LOG3 = math.log(3)


def value_and_gradient(loss: SimPOLoss, logps: tuple[float, float] = (-2.0, -12.0)) -> tuple[float, list[float]]:
    """Of a pair with 2 and 4 tokens; the means are -1 and -3."""
    leaf = torch.tensor([logps], requires_grad=True)
    value = loss(ResponseLogps(leaf, NUM_TOKENS), None, TWO, UNRATED)
    value.sum().backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad[0].tolist()


def test_by_hand() -> None:
    """beta = gamma = log 3: d = 2 log 3 - log 3 = log 3, loss log(4/3), slope -1/4."""
    value, gradient = value_and_gradient(SimPOLoss(beta=LOG3, gamma=LOG3))
    assert value == pytest.approx(math.log(4 / 3))
    assert gradient == pytest.approx([-LOG3 / 4 / 2, LOG3 / 4 / 4])


def test_smoothing_and_language_model_term_by_hand() -> None:
    """Smoothing of 1/4 adds log(3) / 4 and takes the slope away; the term adds 2 * 1 with a slope of -2 / 2."""
    value, gradient = value_and_gradient(SimPOLoss(beta=LOG3, gamma=LOG3, label_smoothing=0.25, nll_weight=2))
    assert value == pytest.approx(math.log(4 / 3) + LOG3 / 4 + 2)
    assert gradient == pytest.approx([-1, 0], abs=1e-7)


@settings(deadline=None)
@given(logps=st.tuples(st.floats(-60, 0), st.floats(-60, 0)), beta=st.floats(0.1, 5))
def test_without_a_margin_it_is_dpo_over_tokens_with_no_reference(logps: tuple[float, float], beta: float) -> None:
    policy = ResponseLogps(torch.tensor([logps], dtype=torch.float64), NUM_TOKENS)
    uniform = ResponseLogps(torch.zeros(1, 2, dtype=torch.float64), NUM_TOKENS)
    assert_close(
        SimPOLoss(beta=beta, gamma=0)(policy, None, TWO, UNRATED),
        DPOLoss(beta=beta, per_token=True)(policy, uniform, TWO, UNRATED),
    )


def test_statistics_are_of_means() -> None:
    """beta times -1 and -3; the log-probabilities are still sums."""
    policy = ResponseLogps(torch.tensor([[-2.0, -12.0]]), NUM_TOKENS)
    found = {name: mean.values.item() for name, mean in SimPOLoss().statistics(policy, None, TWO, UNRATED).items()}
    assert found == {
        "chosen_reward_mean": -2,
        "rejected_reward_mean": -6,
        "reward_margin": 4,
        "reward_acc": 1,
        "chosen_logp_mean": -2,
        "rejected_logp_mean": -12,
        "chosen_nll_mean": 1,
    }
