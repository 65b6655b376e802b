from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from xrlhf.errors import ConfigError
from xrlhf.losses.policy import APOZeroLoss, KTOLoss, ResponseLogps

NAN = math.nan
BETA = math.log(3)


def responses(ratios: Tensor) -> tuple[ResponseLogps, ResponseLogps]:
    """Policy and reference with these log-ratios."""
    num_tokens = torch.full(ratios.shape, 3)
    return ResponseLogps(ratios, num_tokens), ResponseLogps(torch.zeros_like(ratios), num_tokens)


def singles(loss: KTOLoss, kl: Tensor | None = None) -> tuple[list[float], list[float]]:
    """Values and gradients of two groups of one response: wanted with a log-ratio of 1, unwanted with one of -1."""
    leaf = torch.tensor([[1.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    value = loss(*responses(leaf), torch.ones(2, 1, dtype=torch.bool), torch.tensor([[1.0], [0.0]]), kl=kl)
    value.sum().backward()
    assert leaf.grad is not None
    return value.tolist(), leaf.grad[:, 0].tolist()


def test_without_an_estimate_by_hand() -> None:
    """r = log 3 and -log 3: 1 - 3/4 on both sides. The slope of the sigmoid is 3/16."""
    values, gradients = singles(KTOLoss(beta=BETA))
    assert values == pytest.approx([1 / 4, 1 / 4])
    assert gradients == pytest.approx([-BETA * 3 / 16, BETA * 3 / 16])


def test_weights_by_hand() -> None:
    values, gradients = singles(KTOLoss(beta=BETA, desirable_weight=2, undesirable_weight=4))
    assert values == pytest.approx([1 / 2, 1])
    assert gradients == pytest.approx([-BETA * 3 / 8, BETA * 3 / 4])


def test_with_an_estimate_by_hand() -> None:
    """kl = 1: r - z = 0 and z - r = 2 log 3: 1 - 1/2 and 1 - 9/10. Slopes 1/4 and 9/100."""
    estimate = torch.tensor(1.0, requires_grad=True)
    values, gradients = singles(KTOLoss(beta=BETA), estimate)
    assert values == pytest.approx([1 / 2, 1 / 10])
    assert gradients == pytest.approx([-BETA / 4, BETA * 9 / 100])
    assert estimate.grad is None


@pytest.mark.parametrize("estimate", [torch.tensor(-3.0), torch.zeros(1), torch.tensor([[-1.0]])])
def test_an_estimate_below_zero_is_zero(estimate: Tensor) -> None:
    assert singles(KTOLoss(), estimate) == singles(KTOLoss())


def test_it_says_whether_it_needs_an_estimate() -> None:
    assert KTOLoss().needs_divergence
    assert not KTOLoss(estimate_kl=False).needs_divergence
    with pytest.raises(ConfigError, match="KTOLoss: estimate_kl is 'no'; accepted are True and False"):
        KTOLoss(estimate_kl="no")  # type: ignore[arg-type]


def test_an_estimate_is_one_number() -> None:
    with pytest.raises(ValueError, match=r"kl must be one number, but its shape is \(2,\)"):
        singles(KTOLoss(), torch.zeros(2))


def labels(loss: KTOLoss, ratings: list[float], mask: list[bool] | None = None) -> list[bool | None]:
    """True for desirable, False for not, None for what says nothing."""
    exists = torch.tensor([mask or [True] * len(ratings)])
    desirable, counted = loss.labels(exists, torch.tensor([ratings]))
    pairs = zip(desirable[0].tolist(), counted[0].tolist(), strict=True)
    return [is_desirable if is_counted else None for is_desirable, is_counted in pairs]


def test_labels_are_those_of_the_ratings_else_of_the_order() -> None:
    loss = KTOLoss()
    assert labels(loss, [1.0]) == [True]
    assert labels(loss, [0.0]) == [False]
    assert labels(loss, [NAN]) == [None]
    assert labels(loss, [NAN, NAN, NAN]) == [True, False, False]
    assert labels(loss, [1.0, 1.0, 0.0]) == [True, True, False]
    assert labels(loss, [0.0, 0.0]) == [False, False]
    assert labels(loss, [1.0, NAN]) == [True, False]
    assert labels(loss, [NAN, NAN, NAN], [False, True, True]) == [None, True, False]
    assert labels(loss, [NAN, NAN], [True, False]) == [None, None]
    assert labels(KTOLoss(threshold=3), [5.0, 4.0, 3.0]) == [True, True, False]


def test_labels_by_the_order_alone() -> None:
    """The best of a group, and what is tied with it; nothing where no response is preferred."""
    loss = KTOLoss(threshold=None)
    assert labels(loss, [0.3, 0.0]) == [True, False]
    assert labels(loss, [9.0, 8.0, 8.0]) == [True, False, False]
    assert labels(loss, [9.0, 9.0, 8.0]) == [True, True, False]
    assert labels(loss, [NAN, NAN]) == [True, False]
    assert labels(loss, [2.0, 2.0]) == [None, None]
    assert labels(loss, [1.0]) == [None]
    assert labels(loss, [NAN, 4.0, 4.0], [False, True, True]) == [None, None, None]


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ratings and mask differ in shape: \(1, 1\) and \(1, 2\)"):
        KTOLoss().labels(torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 1))


@settings(deadline=None)
@given(ratios=st.tuples(st.floats(-30, 30), st.floats(-30, 30)))
def test_on_a_pair_without_an_estimate_it_is_half_of_apo_zero(ratios: tuple[float, float]) -> None:
    """The mean over two responses, where APO adds the two terms."""
    batch = responses(torch.tensor([ratios], dtype=torch.float64))
    mask, ratings = torch.ones(1, 2, dtype=torch.bool), torch.full((1, 2), NAN)
    assert_close(KTOLoss(beta=0.2)(*batch, mask, ratings), APOZeroLoss(beta=0.2)(*batch, mask, ratings) / 2)


@settings(deadline=None)
@given(data=st.data())
def test_agrees_with_a_plain_loop(logp_groups: st.SearchStrategy, data: st.DataObject) -> None:
    groups, kl = data.draw(logp_groups), data.draw(st.floats(-3, 3))
    expected, is_usable = [], []
    for policy, reference, mask, ratings in zip(
        groups.policy, groups.reference, groups.mask, groups.ratings, strict=True
    ):
        losses, place = [], 0
        for p, q, exists, rating in zip(policy, reference, mask, ratings, strict=True):
            if not exists:
                continue
            place += 1
            if math.isnan(rating) and sum(mask) == 1:
                continue
            utility = 0.2 * (p - q - max(kl, 0.0))
            if rating > 0.5 or (math.isnan(rating) and place == 1):
                losses.append(0.7 * (1 - (1 + math.tanh(utility / 2)) / 2))
            else:
                losses.append(1.3 * (1 - (1 + math.tanh(-utility / 2)) / 2))
        expected.append(sum(losses) / len(losses) if losses else 0.0)
        is_usable.append(bool(losses))
    loss = KTOLoss(beta=0.2, desirable_weight=0.7, undesirable_weight=1.3)
    tensors = groups.tensors()
    value = loss(*tensors, kl=torch.tensor(kl, dtype=torch.float64))
    assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)
    assert loss.usable(*tensors[2:]).tolist() == is_usable


def test_statistics_by_hand() -> None:
    """A group of one wanted answer, one of one unwanted, and one of three with labels 1, 1, 0.

    Of the last the pairs are (0, 2) and (1, 2): margins 2 - 1 and 0 - 1, one of two right; chosen (2 + 0) / 2.
    """
    ratios = torch.tensor([[4.0, NAN, NAN], [-2.0, NAN, NAN], [2.0, 0.0, 1.0]])
    mask = ~ratios.isnan()
    ratings = torch.tensor([[1.0, NAN, NAN], [0.0, NAN, NAN], [1.0, 1.0, 0.0]])
    found = KTOLoss(beta=0.5).statistics(*responses(ratios), mask, ratings)

    def of(name: str) -> list[float | None]:
        values, counted = found[name]
        return [
            value if is_counted else None for value, is_counted in zip(values.tolist(), counted.tolist(), strict=True)
        ]

    assert of("chosen_reward_mean") == [2, None, 0.5]
    assert of("rejected_reward_mean") == [None, -1, 0.5]
    assert of("reward_margin") == [None, None, 0]
    assert of("reward_acc") == [None, None, 0.5]
    assert of("chosen_logp_mean") == [4, None, 1]
    assert of("rejected_logp_mean") == [None, -2, 1]
    assert of("chosen_nll_mean") == [pytest.approx(-4 / 3), None, pytest.approx(-1 / 3)]


def test_ratings_on_one_side_of_the_threshold_are_named() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    stars = torch.tensor([[5.0, 2.0]])
    assert KTOLoss().problem(mask, stars) == (
        "all ratings (from 2 to 5) are above threshold=0.5: set threshold between those of unwanted and of wanted "
        "responses, or threshold=None to go by the order of the responses"
    )
    assert "are not above threshold=6" in str(KTOLoss(threshold=6).problem(mask, stars))
    assert KTOLoss(threshold=3).problem(mask, stars) is None
    assert KTOLoss(threshold=None).problem(mask, stars) is None
    assert KTOLoss().problem(mask, torch.ones(1, 2)) is None
    assert KTOLoss().problem(mask, torch.zeros(1, 2)) is None
    assert "are not above threshold=3" in str(KTOLoss(threshold=3).problem(mask, torch.tensor([[1.0, 0.0]])))
    assert KTOLoss().problem(mask, torch.full((1, 2), NAN)) is None
