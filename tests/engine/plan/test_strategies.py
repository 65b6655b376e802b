"""What strategies make of a step, in bytes derived by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from xrlhf.engine.plan import DevicePlan, Peak, Sizes, StepNeeds, plan_strategy
from xrlhf.engine.strategies import STRATEGIES_BY_NAME

SIZES = Sizes(
    weights=1000,
    trained=1000,
    num_weights=250,
    num_trained=250,
    layers=(300, 300),
    trained_layers=(300, 300),
    largest=400,
    small=40,
)
"""250 numbers in float32: two layers of 75 and 100 outside them."""
BACKWARD = "the backward pass"
NEEDS = StepNeeds(
    sizes=SIZES,
    states=2000,
    update=10,
    first=Peak(5200, 200, BACKWARD),
    later=Peak(6000, 1000, BACKWARD),
    split=Peak(5100, 0, BACKWARD),
)
BUCKET = {"config": {"zero_optimization": {"reduce_bucket_size": 50}}}
"""Of 50 numbers: 200 bytes."""


def plan(name: str, devices: int = 4, micro_batches: int = 1, needs: StepNeeds = NEEDS, **options: Any) -> DevicePlan:
    preset = dict(STRATEGIES_BY_NAME[name])
    kind = preset.pop("type")
    return plan_strategy(kind, {**preset, **options}, needs, num_devices=devices, micro_batches=micro_batches)


def totals(found: DevicePlan) -> dict[str, float]:
    return {moment.name: moment.total for moment in found.moments}


def test_one_device_holds_everything() -> None:
    """1000 weights, 2000 state; 5200 in the pass; in the update 1000 gradients and 10."""
    found = plan("single", 1)
    assert totals(found) == {BACKWARD: 8200, "the update": 4010}
    assert found.peak.gradients == 200
    assert found.peak.activations == 5000
    assert (found.link, found.host, found.host_link) == (0, 0, 0)
    assert totals(plan("single", 1, 2))[BACKWARD] == 9000


def test_ddp_holds_the_gradients_twice() -> None:
    """The buckets of torch's reducer: 1000 more. An all-reduce sends 2 * 3/4 of 1000."""
    found = plan("ddp")
    assert totals(found) == {BACKWARD: 9200, "the update": 5010}
    assert found.link == 1500


def test_fsdp_holds_a_quarter_and_a_few_layers() -> None:
    """A quarter of 1000 + 1000 + 2000; 5100; outside the layers 400, three times and twice a layer of 300.

    Sent: the others' weights twice and gradients once, 3/4 of 3000.
    """
    found = plan("fsdp")
    assert totals(found) == {BACKWARD: 1000 + 5100 + 400 + 5 * 300, "the update": 1000 + 2.5}
    assert found.link == 2250


def test_fsdp_keeps_whole_gradients_between_micro_batches() -> None:
    """250 + 500 + 1000 whole gradients; weights are gathered for each of two passes, gradients reduced once."""
    found = plan("fsdp", micro_batches=2)
    assert found.peak.gradients == 1000
    assert totals(found)[BACKWARD] == 1750 + 5100 + 400 + 1500
    assert found.link == 0.75 * (4 * 1000 + 1000)


def test_fsdp_that_keeps_its_layers_sends_less() -> None:
    found = plan("fsdp", reshard_after_forward=False)
    assert found.peak.buffers == 400 + 600 + 600
    assert found.link == 0.75 * 2000


def test_fsdp_in_half_precision() -> None:
    preset = dict(STRATEGIES_BY_NAME["fsdp"])
    kind = preset.pop("type")
    found = plan_strategy(
        kind, {"half_precision": True}, NEEDS, num_devices=4, micro_batches=1, precision=torch.bfloat16
    )
    assert found.peak.buffers == 400 + 450 + 600
    assert found.link == 0.75 * 1500


def test_fsdp_offload_leaves_activations_and_buffers() -> None:
    found = plan("fsdp_offload")
    assert totals(found) == {BACKWARD: 5100 + 400 + 1500}
    assert found.host == 1000
    assert found.host_link == 250 * 2 + 250


def test_zero_1_splits_the_state() -> None:
    """1000 weights and a copy of a quarter, 250; 500 state; a bucket of 200; gradients whole until they are reduced."""
    found = plan("zero1", **BUCKET)
    assert totals(found) == {
        BACKWARD: 1750 + 5200 + 200,
        "the reduction of gradients": 1750 + 1000 + 250 + 200,
        "the update": 1750 + 500 + 2.5,
    }
    assert found.link == 0.75 * 2000


def test_zero_2_splits_gradients_too() -> None:
    found = plan("zero2", **BUCKET)
    assert totals(found) == {BACKWARD: 1750 + 250 + 5100 + 200, "the update": 1750 + 500 + 2.5}
    # With a second micro-batch its own gradients lie beside those of the first, and are reduced as well.
    again = plan("zero2", micro_batches=2, **BUCKET)
    assert again.peak.gradients == 500
    assert again.link == 0.75 * 3000


def test_zero_2_offload() -> None:
    """On the device: weights, a bucket, the largest gradient twice. On the host: twice the copy, gradients, state."""
    found = plan("zero2_offload", **BUCKET)
    assert totals(found) == {BACKWARD: 1000 + 5100 + 200 + 800}
    assert found.host == 2 * 250 + 250 + 500 + 400


def test_zero_3_keeps_what_it_has_gathered_up_to_a_limit() -> None:
    """Of a model below DeepSpeed's limit of a billion numbers, all weights, twice while they arrive.

    A quarter of 1000 weights, of their copy, of 1000 gradients and of 2000 state stays.
    """
    found = plan("zero3", **BUCKET)
    assert found.peak.buffers == 200 + 1000 + 1000 + 200
    assert found.peak.weights + found.peak.gradients + found.peak.optimizer == 1250
    assert found.link == 0.75 * 3000
    limited = {"config": {"zero_optimization": {"reduce_bucket_size": 50, "stage3_max_live_parameters": 0}}}
    limited["config"]["zero_optimization"]["stage3_prefetch_bucket_size"] = 10
    # 400 outside the layers, two layers, and 10 numbers on their way.
    assert plan("zero3", **limited).peak.buffers == 200 + 1000 + 40 + 200


def test_zero_3_offload_moves_everything_to_the_host() -> None:
    found = plan("zero3_offload", **BUCKET)
    assert found.peak.weights == found.peak.optimizer == found.peak.gradients == 0
    assert found.host == 250 + 250 + 500 + 500
    assert found.host_link == 250 * 2 + 250


def test_deepspeeds_own_bucket_is_two_gigabytes() -> None:
    assert plan("zero2").peak.buffers == 5e8 * 4
    double = {"config": {"zero_optimization": {"reduce_bucket_size": 50, "overlap_comm": True}}}
    assert plan("zero2", **double).peak.buffers == 400


@pytest.mark.parametrize("name", [name for name in STRATEGIES_BY_NAME if name != "single"])
def test_a_device_by_itself_sends_nothing(name: str) -> None:
    assert plan(name, 1).link == 0


@pytest.mark.parametrize("name", [name for name in STRATEGIES_BY_NAME if name != "single"])
def test_more_devices_never_need_more_memory_each(name: str) -> None:
    few, many = plan(name, 2), plan(name, 64)
    assert many.peak.total <= few.peak.total
    assert many.host <= few.host
    assert many.link > few.link


def test_activations_of_the_host_are_moved_there_and_back() -> None:
    found = plan("ddp", micro_batches=3, needs=replace(NEEDS, on_host=70))
    assert found.host == 70
    assert found.host_link == 2 * 70 * 3
