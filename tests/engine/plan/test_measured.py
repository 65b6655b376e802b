"""Plans against what torch's allocator really gave out, within 15 %."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from measuring import (
    LLAMA_14M,
    LLAMA_32M,
    LLAMA_100M,
    TINY_LLAMA,
    WIDE_OUTPUT,
    backbone,
    groups_of,
    language_model,
    measured_peak,
    planned_peak,
)

from xrlhf.losses.policy import DPOLoss, LanguageModelLoss
from xrlhf.models import PolicyModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "strategies"))

from processes import run_processes

WITHIN = 0.15
LORA = {"lora": {"r": 8, "lora_alpha": 16}}


def compare(model: dict[str, Any], lengths: tuple[int, int], groups_per_step: int, token_budget: int) -> float:
    """Planned by measured, for one process."""
    dataset = groups_of(16, *lengths)
    job = {"strategy": "single", "options": {}, "groups_per_step": groups_per_step, "token_budget": token_budget}
    planned = planned_peak(model, dataset, num_devices=1, **job)
    return planned.total / measured_peak(model, dataset, **job)


@pytest.mark.parametrize(
    ("options", "lengths", "groups_per_step", "token_budget"),
    [
        ({}, (40, 20), 4, 400),
        ({}, (40, 20), 4, 90),
        ({"gradient_checkpointing": True}, (400, 200), 4, 4000),
        ({"precision": "bfloat16"}, (40, 20), 4, 400),
        ({"precision": "bfloat16", "gradient_checkpointing": True}, (400, 200), 4, 1000),
        ({"layout": "padded"}, (40, 20), 4, 400),
        (LORA, (40, 20), 4, 400),
        (LORA, (400, 200), 4, 1000),
    ],
    ids=[
        "one micro-batch",
        "several",
        "checkpointing, long rows",
        "bfloat16",
        "bfloat16, checkpointing",
        "padded",
        "adapters",
        "adapters, long rows",
    ],
)
def test_a_tiny_model(
    options: dict[str, Any], lengths: tuple[int, int], groups_per_step: int, token_budget: int
) -> None:
    ratio = compare({"backbone": backbone(TINY_LLAMA), **options}, lengths, groups_per_step, token_budget)
    assert ratio == pytest.approx(1, abs=WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "token_budget"),
    [({}, 1200), ({"gradient_checkpointing": True}, 1200), ({}, 600), (LORA, 1200)],
    ids=["one micro-batch", "checkpointing", "several micro-batches", "adapters"],
)
def test_a_model_of_100_million(options: dict[str, Any], token_budget: int) -> None:
    ratio = compare({"backbone": backbone(LLAMA_100M), **options}, (200, 100), 3, token_budget)
    assert ratio == pytest.approx(1, abs=WITHIN)


SFT = {"type": PolicyModel, "loss": LanguageModelLoss()}
DPO = {"type": PolicyModel, "loss": DPOLoss()}
POLICIES: dict[str, dict[str, Any]] = {
    "sft": SFT,
    "dpo, copy": DPO,
    "dpo, adapter_off": {**DPO, **LORA},
    "dpo, cached": {**DPO, "reference": "cached"},
    "dpo, another model": {**DPO, "reference": language_model({**TINY_LLAMA, "num_hidden_layers": 1})},
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_tiny_policy(name: str) -> None:
    ratio = compare({**POLICIES[name], "backbone": language_model(TINY_LLAMA)}, (40, 20), 4, 400)
    assert ratio == pytest.approx(1, abs=WITHIN)


@pytest.mark.parametrize(
    ("options", "lengths", "groups_per_step", "token_budget"),
    [
        ({"layout": "padded"}, (40, 20), 4, 400),
        ({"precision": "bfloat16"}, (40, 20), 4, 400),
        ({"gradient_checkpointing": True}, (400, 200), 4, 4000),
        ({}, (40, 20), 4, 90),
    ],
    ids=["padded", "bfloat16", "checkpointing, long rows", "several micro-batches"],
)
def test_options_of_a_tiny_policy(
    options: dict[str, Any], lengths: tuple[int, int], groups_per_step: int, token_budget: int
) -> None:
    model = {**DPO, "backbone": language_model(TINY_LLAMA), **options}
    assert compare(model, lengths, groups_per_step, token_budget) == pytest.approx(1, abs=WITHIN)


@pytest.mark.parametrize("kind", [SFT, DPO], ids=["sft", "dpo"])
@pytest.mark.parametrize("response", [100, 150], ids=["kept", "computed again"])
def test_an_output_layer_larger_than_the_rest(kind: dict[str, Any], response: int) -> None:
    """Of 40,000 entries: 128 MiB are the probabilities of 838 tokens, and those of 800 are kept."""
    model = {**kind, "backbone": language_model(WIDE_OUTPUT)}
    assert compare(model, (20, response), 4, 4000) == pytest.approx(1, abs=WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo, copy", "dpo, adapter_off", "dpo, cached"])
def test_a_policy_of_32_million(name: str) -> None:
    ratio = compare({**POLICIES[name], "backbone": language_model(LLAMA_32M)}, (100, 100), 3, 900)
    assert ratio == pytest.approx(1, abs=WITHIN)


@pytest.mark.slow
def test_a_policy_of_100_million() -> None:
    ratio = compare({**DPO, "backbone": language_model(LLAMA_100M)}, (100, 100), 2, 600)
    assert ratio == pytest.approx(1, abs=WITHIN)


SMALL_BUCKET = {"config": {"zero_optimization": {"reduce_bucket_size": 2_000_000}}}
ONE = {"lengths": (100, 50), "groups_per_step": 4, "token_budget": 400}
SEVERAL = {"lengths": (100, 50), "groups_per_step": 8, "token_budget": 400}
JOBS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp", "options": {}, **ONE},
    "fsdp": {"strategy": "fsdp", "options": {}, **ONE},
    "fsdp, several": {"strategy": "fsdp", "options": {}, **SEVERAL},
    "zero1": {"strategy": "zero1", "options": SMALL_BUCKET, **ONE},
    "zero2": {"strategy": "zero2", "options": SMALL_BUCKET, **ONE},
    "zero2, several": {"strategy": "zero2", "options": SMALL_BUCKET, **SEVERAL},
    "zero3": {"strategy": "zero3", "options": SMALL_BUCKET, **ONE},
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The larger peak of two processes, by job."""
    folder = tmp_path_factory.mktemp("measured")
    jobs = [{"name": name, **job} for name, job in JOBS.items()]
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    run_processes(Path(__file__).with_name("measured_worker.py"), folder)
    found = [json.loads((folder / f"rank_{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    return {name: max(of_rank[name] for of_rank in found) for name in found[0]}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_two_processes(measured: dict[str, int], name: str) -> None:
    job = dict(JOBS[name])
    dataset = groups_of(16, *job.pop("lengths"))
    planned = planned_peak({"backbone": backbone(LLAMA_14M)}, dataset, num_devices=2, **job)
    assert planned.total / measured[name] == pytest.approx(1, abs=WITHIN)
