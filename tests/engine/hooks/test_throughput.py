"""The share of the device's own rate that training reaches."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.runner import get_priority
from toy import ToyModel, pairs, run_of, tiny_reward_model, train
from transformers import LlamaConfig

from xrlhf.config import find_recipe, load_recipe
from xrlhf.config.resolve import resolve
from xrlhf.devices import CpuDevice
from xrlhf.engine.hooks import StepLoggerHook, ThroughputHook
from xrlhf.engine.runner import _DEFAULT_HOOKS

RATE = 1e9
FLOPS_PER_TOKEN = 6 * 2 * (4 * 16 * 16) + 6 * (3 * 16 * 32)
FLOPS_PER_SEGMENT = 6 * (3 * 16 * 32)
FLOPS_PER_PAIR = 12 * 2 * 2 * 8
"""Of the toy Llama: 2 layers of 2560 weights, 1536 of the last one at the ends of segments; 2 heads of 8 numbers."""


def flops_of(number: int) -> int:
    """What the first ``number`` toy groups take, token by token: each prompt once."""
    total = 0
    for group in pairs(number).groups:
        prompt = len(group.prompt_ids)
        total += FLOPS_PER_SEGMENT * (1 + len(group.response_ids))
        total += FLOPS_PER_TOKEN * group.num_tokens + FLOPS_PER_PAIR * sum(range(1, prompt + 1))
        for response in group.response_ids:
            total += FLOPS_PER_PAIR * sum(range(prompt + 1, prompt + len(response) + 1))
    return total


def with_hook(runner: SimpleNamespace) -> tuple[ThroughputHook, list[tuple[str, float]]]:
    """The hook, and what it puts into the message hub."""
    shown: list[tuple[str, float]] = []
    runner.train_loop = runner.loop
    runner.message_hub = SimpleNamespace(update_scalar=lambda name, value: shown.append((name, value)))
    return ThroughputHook(), shown


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("xrlhf"), "propagate", True)
    caplog.set_level(logging.INFO, logger="xrlhf")
    return caplog


@pytest.mark.parametrize("token_budget", [10_000, 20])
def test_the_share_of_a_known_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture, token_budget: int
) -> None:
    """FLOPs of all groups of the step, by its seconds and the rate; however the step is cut into micro-batches."""
    monkeypatch.setattr(CpuDevice, "matrix_rate", lambda self, dtype: RATE)
    runner = run_of(
        tiny_reward_model(),
        pairs(8),
        tmp_path,
        max_steps=1,
        token_budget=token_budget,
        optim_wrapper={"optimizer": {"type": torch.optim.SGD, "lr": 0.1}},
    )
    hook, shown = with_hook(runner)
    hook.before_train(runner)
    (values,) = train(runner)
    hook.after_train_iter(runner, 0, outputs=values)
    seconds = values["num_tokens"] / values["tokens_per_second"]
    assert values["groups_per_second"] == pytest.approx(8 / seconds)
    assert shown == [("train/mfu", pytest.approx(flops_of(8) / seconds / RATE, rel=1e-6))]
    assert log.messages == ["matrix products: 1.00 GFLOP/s in float32, the rate mfu is measured against"]


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(4.2e8, "0.42 GFLOP/s"), (9.99e9, "9.99 GFLOP/s"), (2.1249e11, "212 GFLOP/s"), (6.5e14, "650,000 GFLOP/s")],
)
def test_how_a_rate_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture, rate: float, shown: str
) -> None:
    monkeypatch.setattr(CpuDevice, "matrix_rate", lambda self, dtype: rate)
    runner = run_of(tiny_reward_model(), pairs(), tmp_path, max_steps=1)
    with_hook(runner)[0].before_train(runner)
    assert log.messages == [f"matrix products: {shown} in float32, the rate mfu is measured against"]


@pytest.mark.parametrize(
    ("precision", "weights", "measured"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.bfloat16, torch.float16),
    ],
)
def test_the_rate_is_that_of_the_type_products_are_computed_in(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
    precision: torch.dtype,
    weights: torch.dtype,
    measured: torch.dtype,
) -> None:
    """Autocast's, or the weights' own where there is none."""
    rates = {torch.float32: 1e9, torch.bfloat16: 2e9, torch.float16: 3e9}
    monkeypatch.setattr(CpuDevice, "matrix_rate", lambda self, dtype: rates[dtype])
    runner = run_of(tiny_reward_model(), pairs(), tmp_path, max_steps=1)
    runner.model.hf_model.model.to(weights)
    runner.model.precision = precision
    with_hook(runner)[0].before_train(runner)
    rate = f"{rates[measured] / 1e9:.2f} GFLOP/s in {str(measured).removeprefix('torch.')}"
    assert log.messages == [f"matrix products: {rate}, the rate mfu is measured against"]


def test_measuring_draws_no_random_number(tmp_path: Path) -> None:
    runner = run_of(tiny_reward_model(), pairs(), tmp_path, max_steps=1)

    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    with_hook(runner)[0].before_train(runner)
    assert states() == before


def test_a_model_of_another_kind_is_trained_without(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    runner = run_of(ToyModel(), pairs(), tmp_path, max_steps=1)
    hook, shown = with_hook(runner)
    hook.before_train(runner)
    hook.after_train_iter(runner, 0, outputs=train(runner)[0])
    assert shown == []
    assert log.messages == ["no mfu: ToyModel has no transformers model to count the products of"]


def test_a_model_that_cannot_be_counted_is_trained_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """A family whose config has other names."""
    runner = run_of(tiny_reward_model(), pairs(), tmp_path, max_steps=1)
    hook, shown = with_hook(runner)
    with monkeypatch.context() as patched:
        patched.setattr(LlamaConfig, "get_text_config", lambda self, **kwargs: object())
        hook.before_train(runner)
    hook.after_train_iter(runner, 0, outputs=train(runner)[0])
    assert shown == []
    (message,) = log.messages
    assert message == (
        "no mfu: the products of LlamaForSequenceClassification cannot be counted: 'object' object has no attribute "
        "'num_attention_heads'"
    )


def test_without_the_hook_nothing_is_counted_or_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuDevice, "matrix_rate", lambda self, dtype: pytest.fail("measured"))
    runner = run_of(tiny_reward_model(), pairs(), tmp_path, max_steps=1)
    (values,) = train(runner)
    assert runner.loop.flops_per_second is None
    assert values["groups_per_second"] > 0


def test_every_run_has_it() -> None:
    """Among the runner's own hooks and in the shipped defaults; after the loop's values came, before the log's line."""
    shipped = load_recipe(find_recipe("tiny_reward_cpu")).default_hooks.throughput
    assert resolve(shipped.type) is _DEFAULT_HOOKS["throughput"]["type"] is ThroughputHook
    order = [get_priority(hook.priority) for hook in (RuntimeInfoHook, ThroughputHook, StepLoggerHook)]
    assert order == sorted(set(order))


def test_a_type_the_device_is_slow_in_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """A processor without bfloat16 instructions: four times as fast in float32."""
    rates = {torch.float32: 4 * RATE, torch.bfloat16: RATE}
    monkeypatch.setattr(CpuDevice, "matrix_rate", lambda self, dtype: rates[dtype])
    model = tiny_reward_model()
    model.precision = torch.bfloat16
    runner = run_of(
        model,
        pairs(8),
        tmp_path,
        max_steps=1,
        optim_wrapper={"optimizer": {"type": torch.optim.SGD, "lr": 0.1}},
    )
    hook, _ = with_hook(runner)
    hook.before_train(runner)
    assert log.messages[1:] == [
        "this device multiplies 4.0 times as fast in float32 as in bfloat16: float32 would train faster and more "
        "exactly"
    ]
