"""What every strategy makes of a step: bytes held by a device and by the host, and bytes moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from xrlhf.engine.plan.live_bytes import Peak
from xrlhf.engine.plan.step import StepNeeds
from xrlhf.engine.strategies import DDPStrategy, FSDPStrategy, SingleStrategy, ZeROStrategy

__all__ = ["DevicePlan", "Moment", "plan_strategy"]

_DEEPSPEED_DEFAULTS = {
    "reduce_bucket_size": 5e8,
    "contiguous_gradients": True,
    "stage3_max_live_parameters": 1e9,
    "stage3_prefetch_bucket_size": 5e7,
}
"""Of DeepSpeed 0.19, ``runtime/zero/config.py``; numbers of elements."""


@dataclass(frozen=True)
class Moment:
    """Bytes on a device at one moment of a step, by what they are.

    Args:
        name: The moment.
        weights: Weights that stay, copies that the optimizer updates included.
        gradients: Gradients that are whole.
        optimizer: The optimizer's state.
        activations: What the forward pass keeps and what both passes compute with.
        buffers: What a strategy gathers, reduces in and copies through.
    """

    name: str
    weights: float
    gradients: float
    optimizer: float
    activations: float = 0.0
    buffers: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


@dataclass(frozen=True)
class DevicePlan:
    """One strategy on one device.

    Args:
        moments: The moments that can be the peak.
        host: Bytes in the memory of the host, for this device.
        link: Bytes that a device sends to others in a step.
        resting: Between two steps.
        host_link: Bytes that go between device and host in a step.
        splits_weights: Whether a device has only its share of the weights between two steps.
    """

    moments: tuple[Moment, ...]
    host: float
    link: float
    resting: Moment
    host_link: float = 0.0
    splits_weights: bool = False

    @property
    def peak(self) -> Moment:
        """The moment with most bytes."""
        return max(self.moments, key=lambda moment: moment.total)


def plan_strategy(
    kind: type[SingleStrategy],
    options: Mapping[str, Any],
    needs: StepNeeds,
    *,
    num_devices: int,
    micro_batches: int,
    precision: torch.dtype = torch.float32,
) -> DevicePlan:
    """The plan of one strategy.

    Args:
        kind: Its class.
        options: Its options.
        needs: Of a step where nothing is split.
        num_devices: How many devices share the step.
        micro_batches: Forward and backward passes of a step.
        precision: What the layers compute in.
    """
    planners: dict[type[SingleStrategy], Callable[..., DevicePlan]] = {
        ZeROStrategy: _zero,
        FSDPStrategy: _fsdp,
        DDPStrategy: _ddp,
        SingleStrategy: _single,
    }
    planner = next(function for known, function in planners.items() if issubclass(kind, known))
    return planner(needs, dict(options), num_devices, micro_batches, precision)


def _passes(needs: StepNeeds, micro_batches: int) -> Peak:
    """The peak of the forward and backward passes where gradients stay until the update."""
    return needs.later if micro_batches > 1 else needs.first


def _single(
    needs: StepNeeds, options: dict[str, Any], devices: int, micro_batches: int, precision: torch.dtype
) -> DevicePlan:
    return _with_whole_model(needs, micro_batches, buffers=0.0, link=0.0)


def _ddp(
    needs: StepNeeds, options: dict[str, Any], devices: int, micro_batches: int, precision: torch.dtype
) -> DevicePlan:
    trained = needs.sizes.trained
    # Buckets of torch's reducer hold a second copy of all gradients, from the beginning to the end of the run.
    return _with_whole_model(needs, micro_batches, buffers=trained, link=2 * _others(devices) * trained)


def _with_whole_model(needs: StepNeeds, micro_batches: int, *, buffers: float, link: float) -> DevicePlan:
    sizes, passes = needs.sizes, _passes(needs, micro_batches)
    return DevicePlan(
        moments=(
            Moment(
                passes.phase,
                sizes.weights,
                passes.gradients,
                needs.states,
                passes.total - passes.gradients,
                buffers,
            ),
            Moment("the update", sizes.weights, sizes.trained, needs.states, 0.0, buffers + needs.update),
        ),
        host=needs.on_host,
        link=link,
        resting=_resting(sizes.weights, needs.states, buffers),
        host_link=2 * needs.on_host * micro_batches,
    )


def _resting(weights: float, states: float, buffers: float = 0.0) -> Moment:
    """Without gradients, which go with an update."""
    return Moment("rest", weights, 0.0, states, 0.0, buffers)


def _fsdp(
    needs: StepNeeds, options: dict[str, Any], devices: int, micro_batches: int, precision: torch.dtype
) -> DevicePlan:
    sizes = needs.sizes
    half = bool(options.get("half_precision")) and precision is not torch.float32
    width = 0.5 if half else 1.0
    stays = not options.get("reshard_after_forward", True)
    # A layer at work and the next one on its way, which is gathered into one buffer and copied out of it.
    gathered = sizes.rest + (sum(sizes.layers) if stays else 3 * width * sizes.largest_layer)
    # Behind it the gradient of a layer, and its copy that is being reduced.
    reduced = 2 * sizes.largest_trained_layer
    share = 1 / devices
    # Between micro-batches gradients are not reduced, so a device holds its own of all weights.
    gradients = sizes.trained if micro_batches > 1 else sizes.trained * share
    offload = bool(options.get("cpu_offload"))
    kept = 0.0 if offload else share
    # A reference runs forward only.
    gathers = micro_batches * (sizes.in_step if stays else 2 * sizes.in_step - sizes.of_reference_in_step)
    link = _others(devices) * width * (gathers + sizes.trained)
    moved = share * (gathers + sizes.trained) if offload else 0.0
    moments = [
        Moment(
            needs.split.phase,
            sizes.weights * kept,
            gradients if micro_batches > 1 or not offload else 0.0,
            needs.states * kept,
            needs.split.total,
            gathered + reduced,
        ),
    ]
    if not offload:
        moments.append(
            Moment(
                "the update",
                sizes.weights * share,
                sizes.trained * share,
                needs.states * share,
                0.0,
                needs.update * share,
            )
        )
    host = (sizes.weights + sizes.trained + needs.states) * share if offload else 0.0
    return DevicePlan(
        tuple(moments),
        host=needs.on_host + host,
        link=link,
        resting=_resting(sizes.weights * kept, needs.states * kept),
        host_link=moved + 2 * needs.on_host * micro_batches,
        splits_weights=True,
    )


def _zero(
    needs: StepNeeds, options: dict[str, Any], devices: int, micro_batches: int, precision: torch.dtype
) -> DevicePlan:
    settings = {**_DEEPSPEED_DEFAULTS, **dict((options.get("config") or {}).get("zero_optimization") or {})}
    stage, offload = options["stage"], bool(options.get("cpu_offload"))
    sizes, share = needs.sizes, 1 / devices
    element = sizes.trained / sizes.num_trained if sizes.num_trained else 4.0
    bucket = settings["reduce_bucket_size"] * element if settings["contiguous_gradients"] or offload else 0.0
    planner = _zero_3 if stage == 3 else _zero_1_and_2
    return planner(needs, settings, stage, offload, share, bucket, micro_batches)


def _zero_1_and_2(
    needs: StepNeeds,
    settings: dict[str, Any],
    stage: int,
    offload: bool,
    share: float,
    bucket: float,
    micro_batches: int,
) -> DevicePlan:
    sizes = needs.sizes
    # The share that the optimizer updates is a float32 copy, also of weights that are float32.
    copy = 4 * sizes.num_trained * share
    own = sizes.trained * share
    weights = sizes.weights + (0.0 if offload else copy)
    states = 0.0 if offload else needs.states * share
    if settings.get("overlap_comm"):
        bucket *= 2
    if stage == 1:
        passes = _passes(needs, micro_batches)
        moments = [
            Moment(passes.phase, weights, passes.gradients, states, passes.total - passes.gradients, bucket),
            Moment("the reduction of gradients", weights, sizes.trained + own, states, 0.0, bucket),
        ]
        reduced = 1
    else:
        held = 0.0 if offload else own * (2 if micro_batches > 1 else 1)
        extra = 2 * sizes.largest if offload else 0.0
        moments = [
            Moment(needs.split.phase, weights, held, states, needs.split.total, bucket + extra),
        ]
        reduced = micro_batches
    if not offload:
        moments.append(Moment("the update", weights, 2 * own, states, 0.0, needs.update * share))
    host = 2 * copy + own + needs.states * share + sizes.largest if offload else 0.0
    return DevicePlan(
        tuple(moments),
        host=needs.on_host + host,
        link=(1 - share) * sizes.trained * (reduced + 1),
        resting=_resting(weights, states),
        host_link=(2 * own if offload else 0.0) + 2 * needs.on_host * micro_batches,
    )


def _zero_3(
    needs: StepNeeds,
    settings: dict[str, Any],
    stage: int,
    offload: bool,
    share: float,
    bucket: float,
    micro_batches: int,
) -> DevicePlan:
    sizes = needs.sizes
    element = sizes.weights / sizes.num_weights if sizes.num_weights else 4.0
    # DeepSpeed keeps what it has gathered until so many numbers are there.
    ahead = settings["stage3_prefetch_bucket_size"] * element
    most = settings["stage3_max_live_parameters"] * element + ahead
    gathered = min(sizes.weights, max(most, sizes.rest + 2 * sizes.largest_layer))
    # What is fetched ahead arrives in one piece, from which every weight is copied.
    gathered += min(sizes.weights, ahead)
    own = sizes.trained * share
    # As at the lower stages, the optimizer updates a float32 copy.
    weights = 0.0 if offload else sizes.weights * share + 4 * sizes.num_trained * share
    states = 0.0 if offload else needs.states * share
    gradients = 0.0 if offload else own
    # What is reduced is copied once more; a bucket that holds all gradients is reduced behind the last layer.
    copied = min(sizes.trained, bucket) if bucket else sizes.largest
    at_the_end = copied == sizes.trained
    moments = [
        Moment(
            needs.split.phase,
            weights,
            gradients,
            states,
            needs.split.total,
            bucket + gathered + (0.0 if at_the_end else copied),
        ),
        Moment("the reduction of gradients", weights, gradients, states, 0.0, bucket + sizes.small + copied),
    ]
    if not offload:
        moments.append(Moment("the update", weights, 2 * own, states, 0.0, bucket + sizes.small + needs.update * share))
    host = sizes.weights * share + 4 * sizes.num_trained * share + 2 * own + needs.states * share if offload else 0.0
    passes = micro_batches * (2 * sizes.in_step - sizes.of_reference_in_step)
    return DevicePlan(
        tuple(moments),
        host=needs.on_host + host,
        link=(1 - share) * (passes + micro_batches * sizes.trained),
        resting=_resting(weights, states, bucket + sizes.small),
        host_link=(share * passes + micro_batches * own if offload else 0.0) + 2 * needs.on_host * micro_batches,
        splits_weights=True,
    )


def _others(devices: int) -> float:
    """What a ring sends of every byte: to all devices but one."""
    return (devices - 1) / devices
