"""Optimizers over what is trainable, and schedules in shares of the run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch import nn
from torch.optim import SGD, AdamW

from xrlhf.engine.optim import StepOptimWrapper, build_optim_wrapper, build_param_schedulers
from xrlhf.errors import ConfigError, ModelError


def model() -> nn.Module:
    """Two matrices, one of them frozen, two biases and a norm's weight and bias."""
    built = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    built[0].weight.requires_grad_(False)
    return built


def test_only_trainable_parameters_are_given_and_vectors_do_not_decay() -> None:
    built = model()
    wrapper = build_optim_wrapper(built, {"optimizer": {"type": AdamW, "lr": 0.5, "weight_decay": 0.1}})
    decayed, plain = wrapper.optimizer.param_groups
    assert [id(p) for p in decayed["params"]] == [id(built[2].weight)]
    assert {id(p) for p in plain["params"]} == {
        id(p) for p in (built[0].bias, built[1].weight, built[1].bias, built[2].bias)
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert wrapper.get_lr() == {"lr": [0.5, 0.5]}


def test_everything_decays_if_asked() -> None:
    wrapper = build_optim_wrapper(model(), {"optimizer": {"type": "AdamW", "weight_decay": 0.1}, "decay_all": True})
    assert [group["weight_decay"] for group in wrapper.optimizer.param_groups] == [0.1]
    assert sum(len(group["params"]) for group in wrapper.optimizer.param_groups) == 5


def test_a_part_has_a_learning_rate_of_its_own() -> None:
    sgd = {"type": SGD, "lr": 0.1, "weight_decay": 0.5}
    wrapper = build_optim_wrapper(model(), {"optimizer": sgd, "lr_by_part": {"2": 0.2}})
    groups = [(group["lr"], group["weight_decay"], len(group["params"])) for group in wrapper.optimizer.param_groups]
    assert groups == [(0.1, 0.0, 3), (0.2, 0.5, 1), (0.2, 0.0, 1)]
    with pytest.raises(ConfigError, match=r"^optim_wrapper\.lr_by_part: the model has no trainable part called 'x'$"):
        build_optim_wrapper(model(), {"optimizer": sgd, "lr_by_part": {"x": 0.2}})
    with pytest.raises(ConfigError, match=r"^optim_wrapper\.lr_by_part\.0 must be a number above 0, got 0$"):
        build_optim_wrapper(model(), {"optimizer": sgd, "lr_by_part": {"0": 0}})


def test_a_model_of_vectors_only() -> None:
    wrapper = build_optim_wrapper(nn.LayerNorm(3), {"optimizer": {"type": SGD, "lr": 1.0, "weight_decay": 0.1}})
    assert [group["weight_decay"] for group in wrapper.optimizer.param_groups] == [0.0]


def test_nothing_to_train() -> None:
    with pytest.raises(ModelError, match=r"^no parameter of the model is trainable$"):
        build_optim_wrapper(model().requires_grad_(False), {"optimizer": {"type": SGD, "lr": 1.0}})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"optim_wrapper takes optimizer, max_grad_norm, decay_all and lr_by_part, got $"),
        ({"optimizer": {"type": SGD, "lr": 1.0}, "clip_grad": {}}, r"takes optimizer, .*, got clip_grad, optimizer"),
        ({"optimizer": {"lr": 1.0}}, r"optim_wrapper\.optimizer: .*type"),
        ({"optimizer": {"type": SGD, "lr": 1.0, "betas": (0.9, 0.9)}}, r"optim_wrapper\.optimizer: .*betas"),
        ({"optimizer": {"type": SGD, "lr": -1.0}}, r"optim_wrapper\.optimizer: .*Invalid learning rate: -1\.0"),
        ({"optimizer": {"type": "NoSuchOptimizer"}}, r"optim_wrapper\.optimizer: .*NoSuchOptimizer"),
        (
            {"optimizer": {"type": SGD, "lr": 1.0}, "max_grad_norm": 0.0},
            r"optim_wrapper\.max_grad_norm must be above 0, or None for no clipping, got 0\.0",
        ),
    ],
)
def test_a_wrong_section(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optim_wrapper(model(), config)


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        (1.0, [0.6, 0.8]),  # the norm is 5: scaled by 1/5
        (10.0, [3.0, 4.0]),
        (None, [3.0, 4.0]),
    ],
)
def test_gradients_are_clipped_by_their_norm(limit: float | None, left: list[float]) -> None:
    """One gradient of 3 and one of 4 have the norm 5."""
    first, second, unused = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    wrapper = StepOptimWrapper(SGD([first, second, unused], lr=1.0), limit)
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert wrapper.clip_gradients().item() == pytest.approx(5.0)
    assert [first.grad.item(), second.grad.item()] == pytest.approx(left, rel=1e-5)
    assert unused.grad is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_norm_tells_of_non_finite_gradients(value: float) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    wrapper = StepOptimWrapper(SGD([parameter], lr=1.0), 1.0)
    parameter.grad = torch.tensor([1.0, value])
    assert not math.isfinite(wrapper.clip_gradients().item())


def learning_rates(configs: Any, max_steps: int, base: float = 1.0) -> list[float]:
    """The learning rate of every step of a run."""
    parameter = nn.Parameter(torch.zeros(1))
    wrapper = StepOptimWrapper(SGD([parameter], lr=base))
    schedulers = build_param_schedulers(configs, wrapper, max_steps)
    rates = []
    for _ in range(max_steps):
        rates.append(wrapper.get_lr()["lr"][0])
        wrapper.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


def test_no_schedule() -> None:
    assert learning_rates(None, 3) == [1.0, 1.0, 1.0]
    assert learning_rates([], 2) == [1.0, 1.0]


def test_shares_of_the_run_are_steps() -> None:
    """A warm-up over 0.4 of 10 steps rises over 4 of them, from 0.2 by equal parts to 1."""
    config = {"type": LinearLR, "start_factor": 0.2, "begin": 0.0, "end": 0.4}
    rates = learning_rates(config, 10)
    assert rates == pytest.approx([0.2, 0.2 + 0.8 / 3, 0.2 + 1.6 / 3, 1.0, 1, 1, 1, 1, 1, 1])
    assert learning_rates([{**config, "begin": 0, "end": 4}], 10) == rates


def test_warm_up_then_cosine() -> None:
    """Cosine from 1 to 0.5 over the last 4 of 6 steps: 0.5 + 0.5 * (1 + cos(pi * t / 4)) / 2."""
    rates = learning_rates(
        [
            {"type": LinearLR, "start_factor": 0.5, "begin": 0.0, "end": 1 / 3},
            {"type": CosineAnnealingLR, "eta_min": 0.5, "begin": 1 / 3, "end": 1.0},
        ],
        6,
    )
    cosine = [0.5 + 0.25 * (1 + math.cos(math.pi * t / 4)) for t in range(4)]
    assert rates == pytest.approx([0.5, 1.0, *cosine])


def test_a_share_smaller_than_a_step_is_no_schedule() -> None:
    """0.05 of 5 steps is a quarter of a step."""
    assert learning_rates({"type": LinearLR, "start_factor": 0.1, "begin": 0.0, "end": 0.05}, 5) == [1.0] * 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"begin": 1.5}, r"param_scheduler\[0\]\.begin=1\.5 must be a share from 0\.0 to 1\.0, or a whole number"),
        ({"end": -0.1}, r"param_scheduler\[0\]\.end=-0\.1 must be a share"),
        (
            {"begin": 0.6, "end": 0.2},
            r"param_scheduler\[0\] ends before it begins: begin=0\.6, end=0\.2 in a run of 10",
        ),
        ({"begin": 20}, r"param_scheduler\[0\] ends before it begins: begin=20, end=10 in a run of 10 steps"),
        ({"factor": 3}, r"param_scheduler\[0\]: .*factor"),
        ({"start_factor": 7.0}, r"param_scheduler\[0\]: "),
        ({"type": "NoSuchLR"}, r"param_scheduler\[0\]: .*NoSuchLR"),
    ],
)
def test_a_wrong_schedule(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        learning_rates({"type": LinearLR, **config}, 10)


def test_the_second_schedule_is_named() -> None:
    with pytest.raises(ConfigError, match=r"param_scheduler\[1\]\.end=2\.0"):
        learning_rates([{"type": LinearLR}, {"type": LinearLR, "end": 2.0}], 10)


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({"type": AdamW}, True),
        ({"type": SGD, "lr": 0.1}, True),
        ({"type": AdamW, "fused": False}, False),
        ({"type": AdamW, "foreach": True}, None),
        ({"type": AdamW, "differentiable": True}, None),
        ({"type": torch.optim.Adamax}, "no such option"),
    ],
)
def test_one_kernel_where_torch_has_it_and_the_recipe_leaves_it_open(options: dict[str, Any], fused: Any) -> None:
    optimizer = build_optim_wrapper(model(), {"optimizer": options}).optimizer
    assert optimizer.defaults.get("fused", "no such option") == fused


def test_the_fused_kernel_steps_as_the_plain_one() -> None:
    """Ten steps of AdamW with weight decay, from the same weights and gradients."""
    weights = []
    for fused in (None, False):
        torch.manual_seed(0)
        trained = model()
        options = {"type": AdamW, "lr": 0.1, "weight_decay": 0.1, **({} if fused is None else {"fused": fused})}
        wrapper = build_optim_wrapper(trained, {"optimizer": options})
        for step in range(10):
            for parameter in trained.parameters():
                parameter.grad = torch.sin(parameter.detach() * 3 + step)
            wrapper.step()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trained.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
