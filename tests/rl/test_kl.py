"""Estimates of the divergence, and the weight that follows a target."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xrlhf.errors import ConfigError
from xrlhf.losses.kl import check_kl_estimator, kl_estimate
from xrlhf.rl.kl import KLControl


def test_the_estimators_by_hand() -> None:
    """x = ln 2: k1 = ln 2, k2 = (ln 2)^2 / 2, k3 = 1/2 - 1 + ln 2."""
    logps, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_estimate(logps, reference, "k1").item() == pytest.approx(math.log(2))
    assert kl_estimate(logps, reference, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_estimate(logps, reference, "k3").item() == pytest.approx(math.log(2) - 0.5)


def test_k1_and_k3_are_right_on_average() -> None:
    """Over two tokens of (.7, .3) against (.4, .6); k2 is not."""
    policy, reference = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])
    exact = float((policy * (policy / reference).log()).sum())
    found = {name: float((policy * kl_estimate(policy.log(), reference.log(), name)).sum()) for name in ("k1", "k3")}
    assert found == pytest.approx({"k1": exact, "k3": exact})


@given(st.floats(-60, 60))
def test_k3_is_never_negative_and_finite(x: float) -> None:
    found = float(kl_estimate(torch.tensor(x), torch.tensor(0.0), "k3"))
    assert 0 <= found < math.inf


def test_the_gradient_of_k3_at_the_reference_is_zero() -> None:
    logps = torch.tensor([-1.0, -2.0], requires_grad=True)
    kl_estimate(logps, logps.detach().clone(), "k3").sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [0.0, 0.0]


def test_an_unknown_estimator() -> None:
    assert check_kl_estimator("X", "kl_estimator", "k2") == "k2"
    with pytest.raises(ConfigError, match=r"^X: kl_estimator is 'k4'; accepted are 'k1', 'k2', 'k3'$"):
        check_kl_estimator("X", "kl_estimator", "k4")


def test_a_fixed_weight_stays() -> None:
    control = KLControl(0.2)
    control.update(100.0, 512)
    assert control.coef == 0.2
    # The recipe may change it between two starts.
    other = KLControl(0.3)
    other.load_state(control.state())
    assert other.coef == 0.3


def test_a_target_by_hand() -> None:
    """Target 6, horizon 10,000, 500 answers: twice it adds .2 * .05 (cut from 1), a tenth below takes .1 * .05."""
    control = KLControl(0.2, target=6.0)
    control.update(12.0, 500)
    assert control.coef == pytest.approx(0.2 * 1.01)
    control.update(5.4, 500)
    assert control.coef == pytest.approx(0.2 * 1.01 * 0.995)
    other = KLControl(0.2, target=6.0)
    other.load_state(control.state())
    assert other.coef == control.coef


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coef": -1}, "kl_coef is -1; accepted is a finite number 0 or greater"),
        ({"coef": 0.1, "target": 0}, "kl_target is 0; accepted is a finite number greater than 0"),
        ({"coef": 0.1, "target": 1, "horizon": 0}, "kl_horizon is 0; accepted is a finite number greater than 0"),
        ({"coef": 0, "target": 1}, "kl_target needs a kl_coef above 0 to begin with: 0 times anything stays 0"),
    ],
)
def test_a_wrong_option(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^RLTrainLoop: {message}$"):
        KLControl(**options)
