"""PPO's objective and its variants, by hand and against a slow reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xrlhf.errors import ConfigError
from xrlhf.losses.policy_gradient import DrawnTokens, PolicyGradientLoss, answer_means
from xrlhf.losses.value import ValueLoss


def drawn(ratios: list[float], advantages: list[float], answer: list[int] | None = None, **more: Any) -> DrawnTokens:
    """Tokens whose ratios are these; the old log-probabilities are -1."""
    old = torch.full((len(ratios),), -1.0)
    answers = torch.tensor(answer or [0] * len(ratios))
    logps = old + torch.tensor(ratios).log()
    return DrawnTokens(logps, old, torch.tensor(advantages), answers, int(answers.max()) + 1, **more)


def test_the_clipped_objective_by_hand() -> None:
    """clip .2. A 2: q 1.5 gives min(3, 2.4), q .5 min(1, 1.6). A -2: q .5 gives min(-1, -1.6), q 1.5 min(-3, -2.4)."""
    found = PolicyGradientLoss()(drawn([1.5, 0.5, 0.5, 1.5, 1.0], [2, 2, -2, -2, 3]))
    torch.testing.assert_close(found, torch.tensor([-2.4, -1.0, 1.6, 3.0, -3.0]))


def test_another_limit_above() -> None:
    found = PolicyGradientLoss(clip_high=0.28)(drawn([1.5, 0.5], [1, -1]))
    torch.testing.assert_close(found, torch.tensor([-1.28, 0.8]))


def test_dual_clip_bounds_what_a_bad_token_costs() -> None:
    """c = 3, A = -1: q 10 would cost 10, and costs 3; q 2 costs 2 still; a good token is left alone."""
    found = PolicyGradientLoss(dual_clip=3.0)(drawn([10.0, 2.0, 10.0], [-1, -1, 1]))
    torch.testing.assert_close(found, torch.tensor([3.0, 2.0, -1.2]))


def test_a_ratio_beyond_the_threshold_teaches_nothing() -> None:
    tokens = drawn([20.0, 2.0], [-1, -1])
    logps = tokens.logps.clone().requires_grad_()
    found = PolicyGradientLoss(ratio_threshold=10.0)(tokens._replace(logps=logps))
    torch.testing.assert_close(found.detach(), torch.tensor([0.0, 2.0]))
    found.sum().backward()
    assert logps.grad is not None
    torch.testing.assert_close(logps.grad, torch.tensor([0.0, 2.0]))


def test_the_divergence_and_the_entropy_as_terms() -> None:
    """A 0, so that nothing else is left. x = ln 2 at the first token: k3 = ln 2 - .5; the second has x = 0."""
    tokens = drawn([1.0, 1.0], [0.0, 0.0])
    tokens = tokens._replace(
        reference=tokens.logps - torch.tensor([math.log(2), 0.0]), entropy=torch.tensor([1.0, 2.0])
    )
    found = PolicyGradientLoss(kl_coef=0.5, entropy_coef=0.1)(tokens)
    torch.testing.assert_close(found, torch.tensor([0.5 * (math.log(2) - 0.5) - 0.1, -0.2]))
    assert PolicyGradientLoss(kl_coef=0.5).needs_reference
    assert not PolicyGradientLoss().needs_reference


def test_the_gradient_at_the_first_update_is_the_policy_gradient() -> None:
    """Where q = 1, d loss / d log p = -A."""
    logps = torch.full((3,), -1.0, requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 0.5])
    tokens = DrawnTokens(logps, torch.full((3,), -1.0), advantages, torch.zeros(3, dtype=torch.long), 1)
    PolicyGradientLoss()(tokens).sum().backward()
    assert logps.grad is not None
    torch.testing.assert_close(logps.grad, -advantages)


def test_the_ratio_of_an_answer_is_its_tokens_geometric_mean() -> None:
    """Answer 0 has ratios 4 and 1, so 2; answer 1 has 1.1."""
    loss = PolicyGradientLoss(ratio="answer", clip=0.9, clip_high=5.0)
    found = loss(drawn([4.0, 1.0, 1.1], [1, 1, 1], [0, 0, 1]))
    torch.testing.assert_close(found, torch.tensor([-2.0, -2.0, -1.1]))


def test_what_a_step_is_a_mean_over() -> None:
    """Answers of 1 and 3 tokens, each with loss -1 a token.

    By tokens 4 tokens weigh 1 each; by answers the second's weigh 1/3; by a constant of 8 each weighs 1/8.
    """
    tokens = drawn([1.0] * 4, [1.0] * 4, [0, 1, 1, 1])
    by_tokens, by_answers = PolicyGradientLoss(), PolicyGradientLoss(normalise="answers")
    constant = PolicyGradientLoss(normalise="constant", constant_length=8)
    assert (by_tokens.unit, by_answers.unit, constant.unit) == ("targets", "responses", "responses")
    torch.testing.assert_close(by_tokens.weights(tokens), torch.ones(4))
    torch.testing.assert_close(by_answers.weights(tokens), torch.tensor([1, 1 / 3, 1 / 3, 1 / 3]))
    torch.testing.assert_close(constant.weights(tokens), torch.full((4,), 1 / 8))


def test_statistics_by_hand() -> None:
    """Clipped: above with A > 0, below with A < 0, and nothing else. KL(old || new) by k3: q - 1 - ln q."""
    tokens = drawn([1.5, 1.5, 0.5, 0.5, 1.0], [1, -1, 1, -1, 1])
    found = PolicyGradientLoss().statistics(tokens)
    assert found["clip_share"].tolist() == [1, 0, 0, 1, 0]
    torch.testing.assert_close(found["ratio_mean"], torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0]))
    torch.testing.assert_close(found["kl_update"][0], torch.tensor(0.5 - math.log(1.5)))
    assert set(found) == {"clip_share", "ratio_mean", "kl_update"}


def test_means_of_answers_without_a_token() -> None:
    means, count = answer_means(torch.tensor([1.0, 3.0]), torch.tensor([2, 2]), 3)
    assert (means.tolist(), count.tolist()) == ([0, 0, 2], [1, 1, 2])


def slow(loss: PolicyGradientLoss, new: float, old: float, ref: float, advantage: float) -> float:
    q = math.exp(new - old)
    clipped = min(max(q, 1 - loss.clip), 1 + loss.clip_high)
    objective = min(q * advantage, clipped * advantage)
    if loss.dual_clip is not None and advantage < 0:
        objective = max(objective, loss.dual_clip * advantage)
    x = new - ref
    return -objective + loss.kl_coef * (math.exp(-x) - 1 + x)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_token_as_the_formula_says(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    new, old, ref, advantages = torch.randn(4, 6, generator=generator, dtype=torch.float64).unbind()
    loss = PolicyGradientLoss(clip=0.1, clip_high=0.3, dual_clip=2.0, kl_coef=0.7)
    found = loss(DrawnTokens(new, old, advantages, torch.zeros(6, dtype=torch.long), 1, ref))
    expected = [slow(loss, *map(float, values)) for values in zip(new, old, ref, advantages, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0}, "clip is 0; accepted is a finite number greater than 0 and below 1"),
        ({"clip_high": -1}, "clip_high is -1; accepted is a finite number greater than 0"),
        ({"dual_clip": 1}, "dual_clip is 1; accepted is a finite number greater than 1"),
        ({"ratio_threshold": 0.5}, "ratio_threshold is 0.5; accepted is a finite number greater than 1"),
        ({"kl_coef": -0.1}, "kl_coef is -0.1; accepted is a finite number 0 or greater"),
        ({"kl_estimator": "k9"}, "kl_estimator is 'k9'; accepted are 'k1', 'k2', 'k3'"),
        ({"kl_coef": 0.1, "kl_estimator": "k1"}, "kl_estimator is 'k1', whose gradient is 0 on average .*"),
        ({"entropy_coef": -1}, "entropy_coef is -1; accepted is a finite number 0 or greater"),
        ({"normalise": "words"}, "normalise is 'words'; accepted are 'tokens', 'answers', 'constant'"),
        ({"ratio": "group"}, "ratio is 'group'; accepted are 'token', 'answer'"),
        ({"normalise": "constant"}, "normalise='constant' and constant_length belong together: .*"),
        ({"constant_length": 5}, "normalise='constant' and constant_length belong together: .*"),
    ],
)
def test_a_wrong_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^PolicyGradientLoss: {message}$"):
        PolicyGradientLoss(**options)


# ---------------------------------------------------------------- the critic's


def values_loss(loss: ValueLoss, value: float, old: float, reached: float) -> Tensor:
    return loss(torch.tensor([value]), torch.tensor([old]), torch.tensor([reached]))


def test_the_value_loss_by_hand() -> None:
    """R = 1, V_old = 0, clip .2. V = .1: (.9)^2. V = .5: the value counts as .2, (.8)^2 > (.5)^2. V = -1: 2^2."""
    loss = ValueLoss(coef=0.1)
    assert values_loss(loss, 0.1, 0.0, 1.0).item() == pytest.approx(0.05 * 0.81)
    assert values_loss(loss, 0.5, 0.0, 1.0).item() == pytest.approx(0.05 * 0.64)
    assert values_loss(loss, -1.0, 0.0, 1.0).item() == pytest.approx(0.05 * 4)
    assert values_loss(ValueLoss(coef=1.0, clip=None), 0.5, 0.0, 1.0).item() == pytest.approx(0.5 * 0.25)
    assert repr(loss) == "ValueLoss(coef=0.1, clip=0.2)"


@pytest.mark.parametrize(("options", "name"), [({"coef": 0}, "coef"), ({"clip": 0}, "clip")])
def test_a_wrong_option_of_the_value_loss(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^ValueLoss: {name} is 0; accepted is a finite number greater than 0$"):
        ValueLoss(**options)
