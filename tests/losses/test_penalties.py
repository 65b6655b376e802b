from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from xrlhf.errors import ConfigError
from xrlhf.losses.focal import FocalRankingLoss
from xrlhf.losses.penalties import CenteringPenalty, L2Penalty, LogBarrierPenalty
from xrlhf.losses.ranking import RankingLoss
from xrlhf.registry import LOSSES

NAN = math.nan
ALL_PENALTIES = [LogBarrierPenalty(), LogBarrierPenalty(bound=2.0, eps=0.5), L2Penalty(), CenteringPenalty()]


def penalty_and_gradient(penalty: nn.Module, rows: list[list[float]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scores = torch.tensor(rows, dtype=dtype, requires_grad=True)
    mask, ratings = torch.ones(scores.shape, dtype=torch.bool), torch.full(scores.shape, NAN, dtype=dtype)
    values = penalty(scores, mask, ratings)
    (gradient,) = torch.autograd.grad(values.sum(), scores)
    return values, gradient


def barrier(x: float, bound: float, eps: float) -> float:
    """One score's barrier, spelled out: inside as it stands, outside its tangent at the limit."""

    def inside(y: float) -> float:
        return -math.log(bound - y) - math.log(y + bound)

    limit = bound - eps
    if abs(x) <= limit:
        return inside(x)
    slope = 1 / (bound - limit) - 1 / (bound + limit)
    return inside(limit) + slope * (abs(x) - limit)


def test_zero_head_starts_at_the_published_value() -> None:
    """All scores 0: focal log 2, barrier 0.01 * 2 * (-2 log 5), together log 2 - 0.04 log 5 = 0.6288."""
    scores, mask, ratings = torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool), torch.full((3, 2), NAN)
    loss = FocalRankingLoss()(scores, mask, ratings) + LogBarrierPenalty()(scores, mask, ratings)
    assert_close(loss, torch.full((3,), math.log(2) - 0.04 * math.log(5)))
    assert loss.tolist() == pytest.approx([0.6288] * 3, abs=5e-5)


def test_barrier_by_hand() -> None:
    """Bound 5, score 3: -log 2 - log 8 = -log 16; slope 1/2 - 1/8 = 3/8. Score -3 mirrors it."""
    values, gradient = penalty_and_gradient(LogBarrierPenalty(weight=1.0), [[3.0, 0.0], [-3.0, 0.0]], torch.float64)
    assert_close(values, torch.full((2,), -math.log(16) - math.log(25), dtype=torch.float64))
    assert_close(gradient, torch.tensor([[0.375, 0.0], [-0.375, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("x", [4.9995, 5.0, 5.5, 100.0, 1e4])
def test_barrier_pulls_scores_back_from_outside(x: float) -> None:
    """Outside the gradient is weight * (1/eps - 1/(2 bound - eps)) = .01 * (1000 - 1/9.999) = 9.9989999, outward."""
    values, gradient = penalty_and_gradient(LogBarrierPenalty(), [[x, -x]], torch.float32)
    assert values.isfinite().all()
    assert_close(gradient, torch.tensor([[9.9989999, -9.9989999]]))


def test_barrier_is_continuous_in_value_and_slope_at_the_limit() -> None:
    limit, step = 5.0 - 1e-3, 1e-9
    for sign in (1.0, -1.0):
        rows = [[sign * (limit - step)], [sign * limit], [sign * (limit + step)]]
        values, gradient = penalty_and_gradient(LogBarrierPenalty(weight=1.0), rows, torch.float64)
        # The slope is about 1000 and its own slope about 1e6, so over 1e-9 they move by 1e-6 and 1e-3.
        assert values.tolist() == pytest.approx([values[1].item()] * 3, abs=2e-6)
        assert gradient[:, 0].tolist() == pytest.approx([gradient[1].item()] * 3, abs=2e-3)


def test_barrier_grows_all_the_way_out_in_float32() -> None:
    """No dip and no flat part anywhere near the limit, where float32 is coarsest."""
    scores = torch.linspace(4.9, 5.1, 4001).unsqueeze(1)
    values, gradient = penalty_and_gradient(LogBarrierPenalty(weight=1.0), scores.tolist(), torch.float32)
    assert (gradient > 0).all()
    assert (values.diff() > 0).all()


def test_steps_down_the_gradient_bring_an_outlier_back_inside() -> None:
    penalty = LogBarrierPenalty()
    scores = torch.tensor([[7.0, 0.0]], requires_grad=True)
    mask, ratings = torch.ones(1, 2, dtype=torch.bool), torch.full((1, 2), NAN)
    for _ in range(60):
        (gradient,) = torch.autograd.grad(penalty(scores, mask, ratings).sum(), scores)
        scores = (scores - 0.005 * gradient).detach().requires_grad_()
    assert abs(scores[0, 0].item()) < 5.0


def test_l2_by_hand() -> None:
    """0.5 * (3^2 + 1^2) = 5, gradient 2 * 0.5 * x."""
    values, gradient = penalty_and_gradient(L2Penalty(weight=0.5), [[3.0, -1.0]], torch.float32)
    assert values.tolist() == [5.0]
    assert gradient.tolist() == [[3.0, -1.0]]


def test_centering_by_hand() -> None:
    """Pair: 0.5 * (3 - 1)^2 = 2, gradient 2 * 0.5 * 2 for both. Three responses: 0.5 * (1 + 2 + 3)^2 = 18."""
    values, gradient = penalty_and_gradient(CenteringPenalty(weight=0.5), [[3.0, -1.0]], torch.float32)
    assert values.tolist() == [2.0]
    assert gradient.tolist() == [[2.0, 2.0]]
    values, _ = penalty_and_gradient(CenteringPenalty(weight=0.5), [[1.0, 2.0, 3.0]], torch.float32)
    assert values.tolist() == [18.0]


def test_margin_and_centering_add_up_as_published() -> None:
    """Scores (1, 0), margin .25, centre .01: -log sigmoid(.75) + .01 * 1 = 0.3868710 + 0.01."""
    scores, mask = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    ratings = torch.tensor([[0.25, 0.0]])
    loss = RankingLoss(margin="ratings")(scores, mask, ratings) + CenteringPenalty(0.01)(scores, mask, ratings)
    assert_close(loss, torch.tensor([math.log1p(math.exp(-0.75)) + 0.01]))


@given(data=st.data())
def test_agree_with_plain_sums(scored_groups: st.SearchStrategy, data: st.DataObject) -> None:
    groups = data.draw(scored_groups)
    present = [
        [x for x, exists in zip(*row, strict=True) if exists] for row in zip(groups.scores, groups.mask, strict=True)
    ]
    for penalty, reference in (
        (LogBarrierPenalty(5.0, 0.1), [0.1 * sum(barrier(x, 5.0, 1e-3) for x in row) for row in present]),
        (LogBarrierPenalty(2.0, 0.1, 0.5), [0.1 * sum(barrier(x, 2.0, 0.5) for x in row) for row in present]),
        (L2Penalty(0.1), [0.1 * sum(x * x for x in row) for row in present]),
        (CenteringPenalty(0.1), [0.1 * sum(row) ** 2 for row in present]),
    ):
        values = penalty(*groups.tensors())
        assert_close(values, torch.tensor(reference, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@given(data=st.data())
def test_gradient_is_finite_and_zero_where_absent(scored_groups: st.SearchStrategy, data: st.DataObject) -> None:
    groups = data.draw(scored_groups)
    for penalty in ALL_PENALTIES:
        scores, mask, ratings = groups.tensors()
        scores.requires_grad_()
        (gradient,) = torch.autograd.grad(penalty(scores, mask, ratings).sum(), scores)
        assert gradient.isfinite().all()
        assert not gradient[~mask].any()


@pytest.mark.parametrize("penalty", ALL_PENALTIES, ids=repr)
def test_gradcheck(penalty: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    scores = 3 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    mask, ratings = torch.rand(4, 5, generator=generator) < 0.8, torch.full((4, 5), NAN)
    assert torch.autograd.gradcheck(lambda x: penalty(x, mask, ratings), (scores.requires_grad_(),))


@pytest.mark.parametrize("penalty", ALL_PENALTIES, ids=repr)
def test_extreme_scores_stay_finite(penalty: nn.Module) -> None:
    values, gradient = penalty_and_gradient(penalty, [[1e4, 1e4], [-1e4, 1e4], [-1e4, -1e4]], torch.float32)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("penalty", ALL_PENALTIES, ids=repr)
def test_group_without_responses_gives_zero(penalty: nn.Module) -> None:
    scores, mask, ratings = torch.full((1, 2), NAN), torch.zeros(1, 2, dtype=torch.bool), torch.full((1, 2), NAN)
    assert penalty(scores, mask, ratings).tolist() == [0.0]


def test_half_precision_scores_are_computed_in_float32() -> None:
    """In bfloat16 5 - 0.001 is 5 and the barrier would be infinite."""
    values, _ = penalty_and_gradient(LogBarrierPenalty(), [[5.0, 0.0]], torch.bfloat16)
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([0.01 * (barrier(5.0, 5.0, 1e-3) + barrier(0.0, 5.0, 1e-3))], rel=1e-4)


@pytest.mark.parametrize("build", [LogBarrierPenalty, L2Penalty, CenteringPenalty])
def test_wrong_weight_is_refused(build: type) -> None:
    with pytest.raises(ConfigError, match=rf"{build.__name__}: weight is -1; accepted is a finite number 0 or greater"):
        build(weight=-1)


def test_wrong_bound_and_eps_are_refused() -> None:
    with pytest.raises(ConfigError, match="LogBarrierPenalty: bound is 0; accepted is a finite number greater than 0"):
        LogBarrierPenalty(bound=0)
    with pytest.raises(ConfigError, match="LogBarrierPenalty: eps is 0; accepted is a finite number greater than 0"):
        LogBarrierPenalty(eps=0)
    for options in ({"bound": 1.0, "eps": 1.0}, {"bound": 1e4, "eps": 1e-3}):
        with pytest.raises(ConfigError, match=r"LogBarrierPenalty: eps is .* with bound .*; accepted is a number"):
            LogBarrierPenalty(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"type": "LogBarrierPenalty"}, "LogBarrierPenalty(bound=5, weight=0.01, eps=0.001)"),
        ({"type": "L2Penalty", "weight": 0.1}, "L2Penalty(weight=0.1)"),
        ({"type": "CenteringPenalty"}, "CenteringPenalty(weight=0.01)"),
    ],
)
def test_recipe_builds_them_by_name(options: dict, text: str) -> None:
    penalty = LOSSES.build(options)
    assert repr(penalty) == text
    assert not list(penalty.parameters())
