"""What a step of training really takes, by torch's own account of its allocator, beside what the plan says of it.

The allocator sees every byte that any kernel asks for, also what an operation takes for itself, which the plan cannot
see. The size of the process would say less: it holds what was given back, and pages that were asked for and never
touched do not count in it.
"""

from __future__ import annotations

import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile
from toy import ToyDataset, run_of

from xrlhf.devices import CpuDevice
from xrlhf.engine.plan import Moment, plan_model, plan_strategy, workload_of
from xrlhf.engine.strategies import STRATEGIES_BY_NAME
from xrlhf.losses import RankingLoss
from xrlhf.models import RewardModel, backbone_from_config, causal_lm_from_config
from xrlhf.structures import TokenizedGroup

__all__ = [
    "ADAMW",
    "LLAMA_14M",
    "LLAMA_32M",
    "LLAMA_100M",
    "TINY_LLAMA",
    "WIDE_OUTPUT",
    "backbone",
    "events_of",
    "groups_of",
    "language_model",
    "measured_peak",
    "most_bytes",
    "planned_peak",
]

ADAMW = {"optimizer": {"type": AdamW, "lr": 1e-3}, "max_grad_norm": 1.0}
STEPS = 3
"""The optimizer has its state, and torch's reducer its last buckets, from the third step on."""

TINY_LLAMA = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3}
LLAMA_14M = {"vocab_size": 4000, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}
LLAMA_100M = {"vocab_size": 16000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
LLAMA_32M = {"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}
WIDE_OUTPUT = {"vocab_size": 40000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
"""Logits of a thousand tokens are more than is kept of them."""


def backbone(sizes: dict[str, Any]) -> dict[str, Any]:
    """A Llama as a recipe has it."""
    heads = max(4, sizes["hidden_size"] // 64)
    return {
        "type": backbone_from_config,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        **sizes,
    }


def language_model(sizes: dict[str, Any]) -> dict[str, Any]:
    """The same as a policy's recipe has it."""
    return {**backbone(sizes), "type": causal_lm_from_config}


def groups_of(number: int, prompt: int, response: int, vocab_size: int = 300) -> ToyDataset:
    """Pairs, all of one length; a policy learns both responses, and is told what a reference gave them."""
    generator = np.random.default_rng(0)
    is_target = np.arange(prompt + 2 * response) >= prompt
    known = np.full(2, -5.0 * response, dtype=np.float32)

    def ids(length: int) -> Any:
        return generator.integers(5, vocab_size, length).astype(np.int32)

    return ToyDataset(
        [
            TokenizedGroup(
                ids(prompt), (ids(response), ids(response)), row=i, is_target=is_target, reference_logps=known
            )
            for i in range(number)
        ]
    )


def planned_peak(
    model: dict[str, Any],
    dataset: ToyDataset,
    *,
    strategy: str,
    options: dict[str, Any],
    num_devices: int,
    groups_per_step: int,
    token_budget: int,
) -> Moment:
    """The peak as the plan has it."""
    from xrlhf.data.loader import StepLoader

    loader = StepLoader(
        dataset,  # type: ignore[arg-type]
        groups_per_step=groups_per_step,
        token_budget=token_budget,
        seed=0,
        world_size=num_devices,
    )
    workload = workload_of(loader)
    planned = plan_model({"type": RewardModel, **model}, None, ADAMW, workload, on_cpu=True)
    assert planned.needs.note is None
    preset = dict(STRATEGIES_BY_NAME[strategy])
    kind = preset.pop("type")
    plan = plan_strategy(
        kind,
        {**preset, **options},
        planned.needs,
        num_devices=num_devices,
        micro_batches=workload.micro_batches,
        precision=planned.precision,
    )
    return plan.peak


def measured_peak(
    model: dict[str, Any],
    dataset: ToyDataset,
    *,
    strategy: str,
    options: dict[str, Any],
    groups_per_step: int,
    token_budget: int,
    launcher: str = "none",
) -> int:
    """The most bytes that torch's allocator had given out during the last of some steps of real training."""
    preset = dict(STRATEGIES_BY_NAME[strategy])
    kind = preset.pop("type")
    gc.collect()
    with (
        tempfile.TemporaryDirectory() as folder,
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
    ):
        torch.manual_seed(0)
        options_of_model = {"loss": RankingLoss(), **model}
        built = options_of_model.pop("type", RewardModel)(**options_of_model)
        made = kind(
            device=CpuDevice(),
            work_dir=folder,
            env_kwargs={"launcher": launcher, "randomness": {"seed": 0}},
            experiment_name=folder,
            **{**preset, **options},
        )
        run = run_of(
            built,
            dataset,
            Path(folder),
            max_steps=STEPS,
            groups_per_step=groups_per_step,
            token_budget=token_budget,
            strategy=made,
            optim_wrapper=ADAMW,
        )
        run.model.train()
        for batches in run.loop.dataloader.steps(0, STEPS):
            if batches.step == STEPS - 1:
                with torch.profiler.record_function("the last step"):
                    run.loop.run_step(batches)
            else:
                run.loop.run_step(batches)
    return most_bytes(events_of(seen), "the last step")


def events_of(seen: Any) -> list[dict[str, Any]]:
    """What a profile saw, which it gives once."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(file))
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    return found


def most_bytes(events: list[dict[str, Any]], during: str, *, last: bool = False) -> int:
    """The most bytes that were given out since the profile began and not taken back, while ``during`` went on.

    For the ``last`` time, where it went on several times, and to its end alone.
    """
    spans = [(event["ts"], event.get("dur", 0)) for event in events if event.get("name") == during]
    begins, duration = max(spans) if last else spans[0]
    ends = begins + duration if last else float("inf")
    given: dict[int, int] = {}
    live = most = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        size, address = event["args"]["Bytes"], event["args"]["Addr"]
        if size > 0:
            given[address] = size
            live += size
        else:
            # What was there before the profile, left by another test, may be taken back meanwhile.
            live -= given.pop(address, 0)
        if begins <= event["ts"] <= ends:
            most = max(most, live)
    return most
