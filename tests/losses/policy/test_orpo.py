from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xrlhf.losses.policy import ORPOLoss, ResponseLogps

TWO = torch.ones(1, 2, dtype=torch.bool)
UNRATED = torch.full((1, 2), math.nan)
NUM_TOKENS = torch.tensor([[2, 4]])


def value_and_gradient(loss: ORPOLoss, means: tuple[float, float]) -> tuple[float, list[float]]:
    """Of a pair with 2 and 4 tokens."""
    leaf = torch.tensor([[2 * means[0], 4 * means[1]]], requires_grad=True)
    value = loss(ResponseLogps(leaf, NUM_TOKENS), None, TWO, UNRATED)
    value.sum().backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad[0].tolist()


def test_by_hand() -> None:
    """P = 2/3 and 1/2: odds 2 and 1, d = log 2, -log sigmoid(d) = log(3/2), and -log P of the chosen log(3/2).

    dd/dlog P = 1 / (1 - P) = 3 and 2, dloss/dd = -1/3. Chosen: (-1 - 1/2 * 1/3 * 3) / 2, rejected: 1/2 * 1/3 * 2 / 4.
    """
    value, gradient = value_and_gradient(ORPOLoss(beta=0.5), (math.log(2 / 3), math.log(1 / 2)))
    assert value == pytest.approx(1.5 * math.log(3 / 2))
    assert gradient == pytest.approx([-0.75, 1 / 12])


def test_the_weight_of_the_language_model_term() -> None:
    value, gradient = value_and_gradient(ORPOLoss(beta=0.5, nll_weight=0), (math.log(2 / 3), math.log(1 / 2)))
    assert value == pytest.approx(0.5 * math.log(3 / 2))
    assert gradient == pytest.approx([-0.25, 1 / 12])


def test_certainty_has_a_finite_price_and_a_pull_out_of_it() -> None:
    """A rejected answer of probability 1 must not be left alone: rounding has made its odds infinite.

    Held at log P = -1e-6, the odds are 1e6 and the slope of their logarithm too.
    """
    value, gradient = value_and_gradient(ORPOLoss(beta=1, nll_weight=0), (math.log(1 / 2), 0.0))
    assert value == pytest.approx(math.log(1e6), rel=1e-3)
    assert gradient[1] == pytest.approx(1e6 / 4, rel=1e-3)
    assert gradient[0] == pytest.approx(-2 / 2, rel=1e-3)


def test_a_certain_chosen_answer_costs_nothing() -> None:
    value, gradient = value_and_gradient(ORPOLoss(beta=1), (0.0, math.log(1 / 2)))
    assert value == pytest.approx(0, abs=2e-6)
    # -1 / 2 of the language-model term, and of the odds -odds_j = -1 / 2 as P goes to 1.
    assert gradient[0] == pytest.approx(-1, rel=1e-3)


@settings(deadline=None)
@given(means=st.tuples(st.floats(-12, -1e-4), st.floats(-12, -1e-4)))
def test_the_odds_are_those_of_the_definition(means: tuple[float, float]) -> None:
    policy = ResponseLogps(torch.tensor([means], dtype=torch.float64), torch.ones(1, 2, dtype=torch.int64))
    expected = [math.log(math.exp(mean) / (1 - math.exp(mean))) for mean in means]
    assert ORPOLoss().log_odds(policy, TWO)[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_statistics() -> None:
    """Rewards are beta * log P, as elsewhere; the odds ratio is apart."""
    policy = ResponseLogps(torch.tensor([[2 * math.log(2 / 3), 4 * math.log(1 / 2)]]), NUM_TOKENS)
    found = ORPOLoss(beta=0.5).statistics(policy, None, TWO, UNRATED)
    assert found["reward_margin"].values.item() == pytest.approx(0.5 * math.log(4 / 3))
    assert found["log_odds_ratio"].values.item() == pytest.approx(math.log(2))
    assert found["chosen_nll_mean"].values.item() == pytest.approx(math.log(3 / 2))
