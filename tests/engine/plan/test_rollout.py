"""Plans of runs that draw answers: against what torch's allocator gave out, and by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measuring import ADAMW, TINY_LLAMA, backbone, events_of, language_model, most_bytes
from mmengine.config import Config
from rl_toy import PromptToys, TokenReward, rl_run
from torch.profiler import ProfilerActivity, profile, record_function

from xrlhf.data.practice import practice_tokenizer
from xrlhf.data.prompts import PromptLoader
from xrlhf.devices import CpuDevice
from xrlhf.engine.plan import (
    DevicePlan,
    Moment,
    RolloutNeeds,
    RolloutShape,
    plan_model,
    plan_of,
    rollout_needs,
    with_rollout,
    workload_of_rollouts,
)
from xrlhf.engine.plan.rollout import answers_at_once
from xrlhf.engine.strategies import SingleStrategy
from xrlhf.losses.policy_gradient import PolicyGradientLoss
from xrlhf.models import ActorCritic
from xrlhf.rl import GAE, GroupRelative, PromptRow, Sample
from xrlhf.rl.rollouts import ModelRollouts
from xrlhf.structures import as_ids

WITHIN = 0.15
LLAMA = {**TINY_LLAMA, "vocab_size": 1024}
PROMPT = 24


class PromptsOfOneLength(PromptToys):
    """Twelve, of 24 tokens each."""

    def __init__(self) -> None:
        super().__init__(12)
        generator = np.random.default_rng(0)
        self.prompts = [as_ids(generator.integers(5, 300, PROMPT)) for _ in range(12)]


class WatchedRollouts(ModelRollouts):
    """Answers that never end by themselves, drawn where the profiler sees it."""

    def sample(self, rows: Sequence[PromptRow], k: int, *, key: int) -> list[list[Sample]]:
        self.stop_ids = []
        with record_function("drawing"):
            return super().sample(rows, k, key=key)


def moments_of(model: Mapping[str, Any], sampling: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, float]:
    """The plan's bytes while answers are drawn, and at the peak of a step."""
    loader = PromptLoader(PromptsOfOneLength(), prompts_per_rollout=6, token_budget=600, seed=0)  # type: ignore[arg-type]
    workload, shape = workload_of_rollouts(
        loader,
        num_answers=options["num_answers"],
        new_tokens=sampling["max_new_tokens"],
        epochs=1,
        minibatches=options["minibatches"],
    )
    planned = plan_model({"type": ActorCritic, **model}, None, ADAMW, workload, on_cpu=True)
    assert planned.needs.note is None
    recipe = Config({"rollouts": {"type": ModelRollouts, "sampling": dict(sampling)}})
    needs = rollout_needs(recipe, planned.section, shape, judge_flops=0.0, on_cpu=True, memory=None)
    assert needs.notes == ()
    assert needs.at_once == 6 * options["num_answers"]
    plan = plan_of(SingleStrategy, {}, planned, workload, 1, needs)
    *of_step, drawing = plan.moments
    assert drawing.name == "drawing answers"
    return {
        "drawing": drawing.total + plan.host,
        "learning": max(moment.total for moment in of_step) + plan.host,
    }


def measured(model: Mapping[str, Any], sampling: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, float]:
    """The same as torch's allocator has it, in the second rollout."""
    with (
        tempfile.TemporaryDirectory() as folder,
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
    ):
        torch.manual_seed(0)
        built = ActorCritic(**model)
        run = rl_run(
            built,
            Path(folder),
            rollouts=WatchedRollouts(built, practice_tokenizer(), device=CpuDevice(), sampling=dict(sampling)),
            rewards=TokenReward(),
            prompts=PromptsOfOneLength(),
            token_budget=600,
            optim_wrapper=ADAMW,
            max_rollouts=2,
            **options,
        )
        run.model.train()
        for batches in run.loop.steps():
            with record_function("learning"):
                run.loop.run_step(batches)
            run.loop._iter += 1
    events = events_of(seen)
    return {name: most_bytes(events, name, last=True) for name in ("drawing", "learning")}


GRPO = {"advantage": {"type": GroupRelative}, "num_answers": 4, "minibatches": 2}
PPO = {"advantage": {"type": GAE}, "num_answers": 1, "minibatches": 1, "kl_coef": 0.1}
LOSS = PolicyGradientLoss()
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"loss": LOSS}, {"max_new_tokens": 40}, GRPO),
    "grpo, long answers": ({"loss": LOSS, "reference": None}, {"max_new_tokens": 120}, GRPO),
    "grpo, entropy and top-p": (
        {"loss": PolicyGradientLoss(entropy_coef=0.01)},
        {"max_new_tokens": 40, "top_p": 0.9, "temperature": 0.7},
        GRPO,
    ),
    "ppo, critic shared": ({"loss": LOSS, "critic": "shared"}, {"max_new_tokens": 40}, PPO),
    "ppo, critic of its own": ({"loss": LOSS, "critic": backbone(LLAMA)}, {"max_new_tokens": 40}, PPO),
    "ppo, adapters": (
        {"loss": LOSS, "critic": "shared", "lora": {"r": 8, "lora_alpha": 16}},
        {"max_new_tokens": 40},
        PPO,
    ),
    "ppo, bfloat16": ({"loss": LOSS, "critic": "shared", "precision": "bfloat16"}, {"max_new_tokens": 40}, PPO),
    "reference on the host": ({"loss": LOSS, "reference_device": "cpu"}, {"max_new_tokens": 40}, GRPO),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_planned_is_held(name: str) -> None:
    """Drawing and learning apart, each within 15 %; where the device is the host, both hold the reference."""
    model, sampling, options = CASES[name]
    model = {**model, "backbone": language_model(LLAMA)}
    planned, found = moments_of(model, sampling, options), measured(model, sampling, options)
    assert {moment: planned[moment] / size for moment, size in found.items()} == pytest.approx(
        dict.fromkeys(found, 1.0), abs=WITHIN
    )


SHAPE = RolloutShape(prompts=4, num_answers=2, longest_prompt=30, mean_prompt=20, new_tokens=70, steps=6)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("memory", [None, 10_000, 100_000_000])
def test_as_many_answers_are_drawn_at_once_as_in_a_run(on_cpu: bool, memory: int | None) -> None:
    """100 tokens each, 8 answers of a device; a token takes 2 * 2 * 8 * 4 bytes in a layer, of which there are two."""

    class Device(CpuDevice):
        type = "cpu" if on_cpu else "cuda"

        def total_memory(self) -> int | None:
            return memory

    model = ActorCritic({**language_model(LLAMA), "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32})
    config = model.hf_model.config
    per_token = 2 * 2 * config.num_key_value_heads * config.head_dim * 4
    rollouts = ModelRollouts(model, practice_tokenizer(), device=CpuDevice())
    rollouts.device = Device()
    found = answers_at_once(None, per_token, SHAPE, memory=memory, on_cpu=on_cpu)
    if memory is None and not on_cpu:
        assert found == 8
    else:
        assert found == max(1, min(8, rollouts._token_budget(model.hf_model) // 100))
    assert answers_at_once(350, per_token, SHAPE, memory=memory, on_cpu=on_cpu) == 3


@pytest.mark.parametrize(("splits", "at_once", "buffers"), [(False, 8, 3.0), (True, 8, 3.0 + 40.0), (True, 0, None)])
def test_what_a_rollout_adds(splits: bool, at_once: int, buffers: float | None) -> None:
    """Reward models stay at every moment; weights that are split are put together while answers are drawn."""
    plan = DevicePlan(
        moments=(Moment("the update", 10.0, 10.0, 20.0),),
        host=1.0,
        link=0.0,
        resting=Moment("rest", 10.0, 0.0, 20.0, 0.0, 3.0),
        splits_weights=splits,
    )
    needs = RolloutNeeds(40, 7 if at_once else 0, 5, 2, 6, at_once, 0.0, 0.0, 0.0)
    found = {moment.name: moment for moment in with_rollout(plan, needs).moments}
    assert found["the update"] == Moment("the update", 15.0, 10.0, 20.0)
    assert found["rewarding answers"] == Moment("rewarding answers", 15.0, 0.0, 20.0, 2.0, 3.0)
    if buffers is None:
        assert "drawing answers" not in found
    else:
        assert found["drawing answers"] == Moment("drawing answers", 15.0, 0.0, 20.0, 7.0, buffers)
    assert with_rollout(plan, needs).host == 7.0
