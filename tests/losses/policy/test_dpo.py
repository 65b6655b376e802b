from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from xrlhf.losses.policy import CPOLoss, DPOLoss, HingeDPOLoss, ResponseLogps, RobustDPOLoss

NAN = math.nan
TWO = torch.ones(1, 2, dtype=torch.bool)
UNRATED = torch.full((1, 2), NAN)
LOG3 = math.log(3)
REFERENCE = ResponseLogps(torch.tensor([[-2.0, -2.0]]), torch.tensor([[2, 4]]))


def value_and_gradient(loss: nn.Module, logps: tuple[float, float] = (-1.0, -3.0)) -> tuple[float, list[float]]:
    """Of a pair with 2 and 4 tokens against REFERENCE; the log-ratios are 1 and -1."""
    leaf = torch.tensor([logps], requires_grad=True)
    value = loss(ResponseLogps(leaf, torch.tensor([[2, 4]])), REFERENCE, TWO, UNRATED)
    value.sum().backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad[0].tolist()


def test_dpo_by_hand() -> None:
    """beta = log(3) / 2 and log-ratios 1, -1: d = log 3, sigmoid(d) = 3/4. loss = log(4/3), dloss/dd = -1/4."""
    beta = LOG3 / 2
    value, gradient = value_and_gradient(DPOLoss(beta=beta))
    assert value == pytest.approx(math.log(4 / 3))
    assert gradient == pytest.approx([-beta / 4, beta / 4])


def test_smoothing_by_hand() -> None:
    """e = 1/4 at sigmoid(d) = 3/4 = 1 - e, the minimum: loss = log(4/3) + log(3)/4, slope -1/4 + 1/4 = 0."""
    value, gradient = value_and_gradient(DPOLoss(beta=LOG3 / 2, label_smoothing=0.25))
    assert value == pytest.approx(math.log(4 / 3) + LOG3 / 4)
    assert gradient == pytest.approx([0, 0], abs=1e-7)


def test_means_over_tokens_by_hand() -> None:
    """Log-ratios 1 / 2 and -1 / 4 differ by 3/4; beta = 4/3 log 3 makes that log 3. Each slope is over its tokens."""
    beta = LOG3 * 4 / 3
    value, gradient = value_and_gradient(DPOLoss(beta=beta, per_token=True))
    assert value == pytest.approx(math.log(4 / 3))
    assert gradient == pytest.approx([-beta / 4 / 2, beta / 4 / 4])


def test_the_language_model_term_by_hand() -> None:
    """The chosen answer has -log p = 1 over 2 tokens: 1/2, times the weight 1/2. Its slope is -1/2 * 1/2."""
    beta = LOG3 / 2
    value, gradient = value_and_gradient(DPOLoss(beta=beta, nll_weight=0.5))
    assert value == pytest.approx(math.log(4 / 3) + 0.25)
    assert gradient == pytest.approx([-beta / 4 - 0.25, beta / 4])


def test_three_responses_by_hand() -> None:
    """beta 1, log-ratios 2 log 2, log 2, 0: d = log 2, 2 log 2, log 2, sigmoid(d) = 2/3, 4/5, 2/3.

    Slopes -1/3, -1/5, -1/3 over three pairs: (-1/3 - 1/5) / 3, (1/3 - 1/3) / 3, (1/5 + 1/3) / 3.
    """
    logps = torch.tensor([[2 * math.log(2), math.log(2), 0.0]], dtype=torch.float64, requires_grad=True)
    num_tokens = torch.tensor([[1, 2, 3]])
    value = DPOLoss(beta=1)(
        ResponseLogps(logps, num_tokens),
        ResponseLogps(torch.zeros(1, 3, dtype=torch.float64), num_tokens),
        torch.ones(1, 3, dtype=torch.bool),
        torch.full((1, 3), NAN),
    )
    value.sum().backward()
    assert value.item() == pytest.approx((2 * math.log(3 / 2) + math.log(5 / 4)) / 3)
    assert logps.grad is not None
    assert logps.grad[0].tolist() == pytest.approx([-8 / 45, 0, 8 / 45])


def test_hinge_by_hand() -> None:
    """beta 1/4: d = 1/2, loss 1/2, slope -1. beta 1: d = 2 is beyond the margin."""
    assert value_and_gradient(HingeDPOLoss(beta=0.25)) == (0.5, [-0.25, 0.25])
    assert value_and_gradient(HingeDPOLoss(beta=1)) == (0, [0, 0])
    # Over tokens the log-ratios differ by 3/4.
    assert value_and_gradient(HingeDPOLoss(beta=1, per_token=True)) == (0.25, [-0.5, 0.25])


def test_robust_by_hand() -> None:
    """d = log 3, e = 1/4: (-3/4 log(3/4) + 1/4 log(1/4)) / (1/2); slope -1/4 - (1/4) / (1/2) = -3/4."""
    beta = LOG3 / 2
    value, gradient = value_and_gradient(RobustDPOLoss(beta=beta, label_smoothing=0.25))
    assert value == pytest.approx(2 * (-0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert gradient == pytest.approx([-0.75 * beta, 0.75 * beta])


PAIR = st.tuples(st.floats(-60, 0), st.floats(-60, 0))


def of(loss: nn.Module, logps: tuple[float, float]) -> Tensor:
    policy = ResponseLogps(torch.tensor([logps], dtype=torch.float64), torch.tensor([[2, 4]]))
    return loss(policy, REFERENCE._replace(logps=REFERENCE.logps.double()), TWO, UNRATED)


@settings(deadline=None)
@given(logps=PAIR, rate=st.floats(0, 0.45))
def test_robust_is_unbiased_under_labels_turned_round(logps: tuple[float, float], rate: float) -> None:
    """(1 - e) loss(pair) + e loss(pair turned round) is the loss on clean labels.

    The tokens are swapped with the responses, which sums do not read.
    """
    robust = RobustDPOLoss(beta=0.2, label_smoothing=rate)
    expected = of(DPOLoss(beta=0.2), logps)
    assert_close((1 - rate) * of(robust, logps) + rate * of(robust, logps[::-1]), expected)


@settings(deadline=None)
@given(logps=PAIR, rate=st.floats(0, 0.45))
def test_smoothing_is_the_expected_loss_under_labels_turned_round(logps: tuple[float, float], rate: float) -> None:
    plain = DPOLoss(beta=0.2)
    expected = (1 - rate) * of(plain, logps) + rate * of(plain, logps[::-1])
    assert_close(of(DPOLoss(beta=0.2, label_smoothing=rate), logps), expected)


@settings(deadline=None)
@given(logps=PAIR)
def test_without_smoothing_robust_is_plain(logps: tuple[float, float]) -> None:
    assert_close(of(RobustDPOLoss(beta=0.3, label_smoothing=0), logps), of(DPOLoss(beta=0.3), logps))


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_a_policy_that_is_the_reference(beta: float) -> None:
    """Every reward is 0: log 2, whatever beta is, and a margin of 1 missed altogether."""
    assert value_and_gradient(DPOLoss(beta=beta), (-2.0, -2.0))[0] == pytest.approx(math.log(2))
    assert value_and_gradient(HingeDPOLoss(beta=beta), (-2.0, -2.0))[0] == 1
    assert value_and_gradient(RobustDPOLoss(beta=beta), (-2.0, -2.0))[0] == pytest.approx(math.log(2))


@settings(deadline=None)
@given(logps=PAIR)
def test_a_reference_that_finds_both_alike_is_none(logps: tuple[float, float]) -> None:
    assert_close(of(DPOLoss(beta=0.1), logps), of(CPOLoss(beta=0.1, nll_weight=0), logps))


def test_rewards_are_zero_where_there_is_no_response() -> None:
    policy = ResponseLogps(torch.tensor([[-1.0, NAN]]), torch.tensor([[2, 0]]))
    mask = torch.tensor([[True, False]])
    assert DPOLoss(beta=0.5).rewards(policy, REFERENCE, mask).tolist() == [[0.5, 0]]
    assert DPOLoss(beta=0.5, per_token=True).rewards(policy, REFERENCE, mask).tolist() == [[0.25, 0]]
