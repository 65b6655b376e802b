"""What holds for every loss of the folder: the pairs, absent responses, gradients, messages."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

import xrlhf.losses.policy as package
from xrlhf.errors import ConfigError
from xrlhf.losses.policy import (
    APODownLoss,
    APOZeroLoss,
    CPOLoss,
    DPOLoss,
    HingeDPOLoss,
    IPOLoss,
    KTOLoss,
    ORPOLoss,
    PolicyLoss,
    ResponseLogps,
    RobustDPOLoss,
    SimPOLoss,
)
from xrlhf.registry import LOSSES

NAN = math.nan


class Response(NamedTuple):
    """One response as plain numbers."""

    policy: float
    reference: float
    num_tokens: int

    @property
    def ratio(self) -> float:
        return self.policy - self.reference

    @property
    def mean_ratio(self) -> float:
        return self.ratio / self.num_tokens

    @property
    def mean(self) -> float:
        return self.policy / self.num_tokens

    @property
    def odds(self) -> float:
        return math.exp(self.mean) / -math.expm1(self.mean)


def sigmoid(x: float) -> float:
    return (1 + math.tanh(x / 2)) / 2


def nls(x: float) -> float:
    """-log sigmoid(x)."""
    return math.log1p(math.exp(-x)) if x >= 0 else math.log1p(math.exp(x)) - x


@dataclass(frozen=True)
class Case:
    """A loss on pairs, and what it is on one pair, spelled out."""

    loss: Any
    of_pair: Callable[[Response, Response], float]
    nll_weight: float = 0.0


CASES = {
    "dpo": Case(DPOLoss(beta=0.3), lambda i, j: nls(0.3 * (i.ratio - j.ratio))),
    "dpo with all options": Case(
        DPOLoss(beta=2, label_smoothing=0.2, per_token=True, nll_weight=0.5),
        lambda i, j: 0.8 * nls(2 * (i.mean_ratio - j.mean_ratio)) + 0.2 * nls(-2 * (i.mean_ratio - j.mean_ratio)),
        nll_weight=0.5,
    ),
    "hinge": Case(HingeDPOLoss(beta=0.2), lambda i, j: max(0.0, 1 - 0.2 * (i.ratio - j.ratio))),
    "hinge per token": Case(
        HingeDPOLoss(beta=2, per_token=True), lambda i, j: max(0.0, 1 - 2 * (i.mean_ratio - j.mean_ratio))
    ),
    "robust": Case(
        RobustDPOLoss(beta=0.3, label_smoothing=0.1),
        lambda i, j: (0.9 * nls(0.3 * (i.ratio - j.ratio)) - 0.1 * nls(-0.3 * (i.ratio - j.ratio))) / 0.8,
    ),
    "robust per token": Case(
        RobustDPOLoss(beta=1, label_smoothing=0.2, per_token=True),
        lambda i, j: (0.8 * nls(i.mean_ratio - j.mean_ratio) - 0.2 * nls(j.mean_ratio - i.mean_ratio)) / 0.6,
    ),
    "ipo": Case(IPOLoss(beta=0.25), lambda i, j: (i.mean_ratio - j.mean_ratio - 2) ** 2),
    "ipo on sums": Case(IPOLoss(beta=0.1, per_token=False), lambda i, j: (i.ratio - j.ratio - 5) ** 2),
    "simpo": Case(
        SimPOLoss(beta=2, gamma=0.5, label_smoothing=0.1),
        lambda i, j: 0.9 * nls(2 * (i.mean - j.mean) - 0.5) + 0.1 * nls(0.5 - 2 * (i.mean - j.mean)),
    ),
    "simpo with a language-model term": Case(
        SimPOLoss(nll_weight=2), lambda i, j: nls(2 * (i.mean - j.mean) - 1), nll_weight=2
    ),
    "cpo": Case(
        CPOLoss(beta=0.2, label_smoothing=0.1, nll_weight=0.7),
        lambda i, j: 0.9 * nls(0.2 * (i.policy - j.policy)) + 0.1 * nls(0.2 * (j.policy - i.policy)),
        nll_weight=0.7,
    ),
    "orpo": Case(ORPOLoss(beta=0.2), lambda i, j: 0.2 * nls(math.log(i.odds / j.odds)), nll_weight=1),
    "apo zero": Case(APOZeroLoss(beta=0.2), lambda i, j: 1 - sigmoid(0.2 * i.ratio) + sigmoid(0.2 * j.ratio)),
    "apo down": Case(
        APODownLoss(beta=0.2), lambda i, j: sigmoid(0.2 * i.ratio) + 1 - sigmoid(0.2 * (i.ratio - j.ratio))
    ),
}
ON_PAIRS = [pytest.param(case, id=name) for name, case in CASES.items()]
EVERY = [pytest.param(case.loss, id=name) for name, case in CASES.items()] + [
    pytest.param(KTOLoss(desirable_weight=0.7), id="kto")
]


def batch(num_groups: int, num_responses: int) -> tuple[ResponseLogps, ResponseLogps, Tensor, Tensor]:
    """Random responses in float64, a fifth of them absent, some of them tied."""
    generator = torch.Generator().manual_seed(num_responses)
    shape = num_groups, num_responses
    mask = torch.rand(shape, generator=generator) < 0.8
    mask[0] = True
    num_tokens = torch.randint(1, 9, shape, generator=generator).masked_fill(~mask, 0)
    policy, reference = (
        ResponseLogps((-20 * torch.rand(shape, generator=generator, dtype=torch.float64)).clamp(max=-0.1), num_tokens)
        for _ in range(2)
    )
    ratings = torch.randint(0, 3, shape, generator=generator).double()
    ratings[0] = NAN
    return policy, reference, mask, ratings


@pytest.mark.parametrize("case", ON_PAIRS)
@settings(deadline=None)
@given(data=st.data())
def test_agrees_with_a_plain_loop(case: Case, logp_groups: st.SearchStrategy, data: st.DataObject) -> None:
    groups = data.draw(logp_groups)
    expected = []
    for group, mask in enumerate(groups.mask):
        rows = zip(groups.policy[group], groups.reference[group], groups.num_tokens[group], strict=True)
        responses = [Response(*row) for row in rows]
        losses = [case.of_pair(responses[i], responses[j]) for i, j in groups.pairs(group)]
        best = next((response for response, exists in zip(responses, mask, strict=True) if exists), None)
        nll = case.nll_weight * -best.mean if losses and best else 0.0
        expected.append(sum(losses) / len(losses) + nll if losses else 0.0)
    tensors = groups.tensors()
    assert_close(case.loss(*tensors), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert case.loss.usable(*tensors[2:]).tolist() == [bool(groups.pairs(g)) for g in range(len(groups.mask))]


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("num_responses", [2, 4])
def test_gradcheck(loss: nn.Module, num_responses: int) -> None:
    policy, reference, mask, ratings = batch(5, num_responses)
    assert torch.autograd.gradcheck(
        lambda logps: loss(policy._replace(logps=logps), reference, mask, ratings),
        (policy.logps.requires_grad_(),),
    )


@pytest.mark.parametrize("loss", EVERY)
def test_absent_responses_change_nothing_and_get_no_gradient(loss: nn.Module) -> None:
    """A pair by itself, and the same pair spread over four places whose others hold NaN."""
    places = torch.tensor([1, 3])
    policy, reference, mask, ratings = (
        ResponseLogps(torch.tensor([[-4.0, -3.0]]), torch.tensor([[2, 5]])),
        ResponseLogps(torch.tensor([[-3.5, -3.5]]), torch.tensor([[2, 5]])),
        torch.ones(1, 2, dtype=torch.bool),
        torch.full((1, 2), NAN),
    )

    def spread(values: Tensor, fill: float) -> Tensor:
        return torch.full((1, 4), fill, dtype=values.dtype).index_copy(1, places, values)

    logps = spread(policy.logps, NAN).requires_grad_()
    value = loss(
        ResponseLogps(logps, spread(policy.num_tokens, 0)),
        ResponseLogps(spread(reference.logps, NAN), spread(reference.num_tokens, 0)),
        spread(mask, False),
        torch.full((1, 4), NAN),
    )
    alone = policy._replace(logps=policy.logps.requires_grad_())
    expected = loss(alone, reference, mask, ratings)
    assert_close(value, expected)
    assert value.item() != 0
    value.sum().backward()
    expected.sum().backward()
    assert logps.grad is not None
    assert policy.logps.grad is not None
    assert_close(logps.grad, spread(policy.logps.grad, 0.0))


@pytest.mark.parametrize("case", ON_PAIRS)
def test_groups_without_a_pair_give_zero_and_no_gradient(case: Case) -> None:
    """A single response, two of equal ratings, and none at all."""
    logps = torch.tensor([[-1.0, NAN], [-1.0, -2.0], [NAN, NAN]], requires_grad=True)
    num_tokens = torch.tensor([[3, 0], [3, 4], [0, 0]])
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    ratings = torch.tensor([[1.0, NAN], [1.0, 1.0], [NAN, NAN]])
    reference = ResponseLogps(torch.full((3, 2), -2.0), num_tokens)
    value = case.loss(ResponseLogps(logps, num_tokens), reference, mask, ratings)
    value.sum().backward()
    assert value.tolist() == [0, 0, 0]
    assert logps.grad is not None
    assert logps.grad.tolist() == [[0, 0]] * 3
    assert case.loss.usable(mask, ratings).tolist() == [False] * 3
    assert not any(
        metric.counted.any()
        for metric in case.loss.statistics(ResponseLogps(logps, num_tokens), reference, mask, ratings).values()
    )


@pytest.mark.parametrize("loss", EVERY)
def test_extreme_log_probabilities_stay_finite(loss: nn.Module) -> None:
    """Certainty on either side, and sums as of very long responses."""
    logps = torch.tensor([[0.0, 0.0], [0.0, -1e5], [-1e5, 0.0], [-1e5, -1e5], [-1e-9, -1e-9]], requires_grad=True)
    num_tokens = torch.tensor([[1, 1]] * 5)
    mask, ratings = torch.ones(5, 2, dtype=torch.bool), torch.full((5, 2), NAN)
    value = loss(ResponseLogps(logps, num_tokens), ResponseLogps(torch.full((5, 2), -1.0), num_tokens), mask, ratings)
    value.sum().backward()
    assert value.isfinite().all()
    assert logps.grad is not None
    assert logps.grad.isfinite().all()


@pytest.mark.parametrize("loss", EVERY)
def test_the_reference_is_read_or_not_as_the_loss_says(loss: Any) -> None:
    policy, reference, mask, ratings = batch(3, 4)
    reference.logps.requires_grad_()
    policy.logps.requires_grad_()
    value = loss(policy, reference, mask, ratings)
    value.sum().backward()
    assert reference.logps.grad is None
    if loss.needs_reference:
        with pytest.raises(ValueError, match="compares the policy with a reference model, but reference is None"):
            loss(policy, None, mask, ratings)
    else:
        assert_close(loss(policy, None, mask, ratings), value)
        assert loss.statistics(policy, None, mask, ratings).keys() == loss.statistics(*batch(3, 4)).keys()


@pytest.mark.parametrize("loss", [param for param in EVERY if param.values[0].needs_reference])
@settings(deadline=None)
@given(shift=st.floats(-50, 50))
def test_only_the_ratio_to_the_reference_counts(loss: Any, shift: float) -> None:
    policy, reference, mask, ratings = batch(3, 4)
    if getattr(loss, "nll_weight", 0):
        loss = DPOLoss(loss.beta, loss.label_smoothing, loss.per_token)
    moved = (responses._replace(logps=responses.logps + shift) for responses in (policy, reference))
    assert_close(loss(*moved, mask, ratings), loss(policy, reference, mask, ratings))


@pytest.mark.parametrize("loss", EVERY)
def test_half_precision_is_computed_in_float32(loss: nn.Module) -> None:
    policy, reference, mask, ratings = batch(2, 4)
    halves = [responses._replace(logps=responses.logps.bfloat16()) for responses in (policy, reference)]
    value = loss(*halves, mask, ratings.float())
    assert value.dtype == torch.float32
    floats = [responses._replace(logps=responses.logps.float()) for responses in halves]
    assert_close(value, loss(*floats, mask, ratings.float()), rtol=0, atol=0)


@pytest.mark.parametrize("loss", EVERY)
def test_statistics_are_detached_and_none_is_called_a_loss(loss: Any) -> None:
    policy, reference, mask, ratings = batch(6, 4)
    policy.logps.requires_grad_()
    found = loss.statistics(policy, reference, mask, ratings)
    assert {
        "chosen_reward_mean",
        "rejected_reward_mean",
        "reward_margin",
        "reward_acc",
        "chosen_logp_mean",
        "rejected_logp_mean",
        "chosen_nll_mean",
    } <= found.keys()
    for name, (values, counted) in found.items():
        assert "loss" not in name
        assert not values.requires_grad
        assert values.shape == counted.shape == (6,)
        assert counted.dtype == torch.bool
        assert counted.any()


@pytest.mark.parametrize("loss", EVERY)
def test_every_loss_is_a_policy_loss_and_built_by_name(loss: Any) -> None:
    assert isinstance(loss, PolicyLoss)
    assert isinstance(loss.needs_reference, bool)
    assert loss.needs.startswith("it needs ")
    name = type(loss).__name__
    assert name in package.__all__
    options = {key: getattr(loss, key) for key in inspect.signature(type(loss)).parameters}
    built = LOSSES.build({"type": name, **options})
    assert repr(built) == repr(loss)
    assert all(f"{key}=" in repr(loss) for key in options)


WRONG: list[tuple[type[nn.Module], str, Any, str]] = [
    *(
        (kind, "beta", value, "a finite number greater than 0")
        for kind in (
            DPOLoss,
            HingeDPOLoss,
            RobustDPOLoss,
            IPOLoss,
            SimPOLoss,
            CPOLoss,
            ORPOLoss,
            APOZeroLoss,
            APODownLoss,
            KTOLoss,
        )
        for value in (0, -0.1, NAN, "0.1", True)
    ),
    *(
        (kind, "label_smoothing", value, "a finite number 0 or greater and below 0.5")
        for kind in (DPOLoss, RobustDPOLoss, SimPOLoss, CPOLoss)
        for value in (-0.1, 0.5, NAN)
    ),
    *((kind, "nll_weight", -1, "a finite number 0 or greater") for kind in (DPOLoss, SimPOLoss, CPOLoss, ORPOLoss)),
    *(
        (kind, "per_token", value, "True and False")
        for kind in (DPOLoss, HingeDPOLoss, RobustDPOLoss, IPOLoss)
        for value in (1, "True", None)
    ),
    (SimPOLoss, "gamma", -0.5, "a finite number 0 or greater"),
    (KTOLoss, "desirable_weight", -1, "a finite number 0 or greater"),
    (KTOLoss, "undesirable_weight", math.inf, "a finite number 0 or greater"),
    (KTOLoss, "threshold", "3", "a finite number"),
]


@pytest.mark.parametrize(("kind", "name", "value", "accepted"), WRONG)
def test_wrong_options_are_refused(kind: type[nn.Module], name: str, value: Any, accepted: str) -> None:
    with pytest.raises(ConfigError) as error:
        kind(**{name: value})
    verb = "are" if name == "per_token" else "is"
    assert str(error.value) == f"{kind.__name__}: {name} is {value!r}; accepted {verb} {accepted}"
