"""A plan of memory and time as lines: every strategy beside the others, and which one to take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config

from xrlhf.config.resolve import resolve
from xrlhf.engine.plan.fused_attention import plan_fused_attention
from xrlhf.engine.plan.hardware import Hardware
from xrlhf.engine.plan.step import StepNeeds, sizes_of, step_needs
from xrlhf.engine.plan.strategies import DevicePlan, plan_strategy
from xrlhf.engine.plan.workload import Workload
from xrlhf.engine.strategies import STRATEGIES_BY_NAME, SingleStrategy
from xrlhf.errors import ConfigError
from xrlhf.models import PolicyModel, RewardModel
from xrlhf.models.flops import matrix_flops
from xrlhf.models.shapes import shapes_alone
from xrlhf.registry import MODELS

__all__ = ["Planned", "aligned", "own_strategy", "plan_by_strategy", "plan_lines", "plan_model", "step_seconds"]

_PLAIN_FIRST = ("single", "ddp", "fsdp", "zero1", "zero2", "zero3", "fsdp_offload", "zero2_offload", "zero3_offload")
"""Of those that are as fast as each other, what to take: what needs least beside torch, and then the least moved."""
_FUSED = ("auto", "flash_attn", "torch_varlen", "flex", "sdpa")


@dataclass(frozen=True)
class Planned:
    """A recipe's model, watched.

    Args:
        model: Its class's name, for messages.
        layout: How groups are given to it.
        precision: What its layers compute in.
        checkpointing: Whether it recomputes activations.
        needs: What a step holds.
        flops_per_token: What a step computes, recomputing and a reference included.
        uses_lora: Whether adapters are trained.
        reference: What a policy is compared with, see :class:`~xrlhf.models.PolicyModel`; None for nothing.
    """

    model: str
    layout: str
    precision: torch.dtype
    checkpointing: bool
    needs: StepNeeds
    flops_per_token: float
    uses_lora: bool = False
    reference: str | None = None


def plan_model(
    section: Mapping[str, Any],
    tokenizer: Any,
    optim_wrapper: Mapping[str, Any],
    workload: Workload,
    *,
    on_cpu: bool,
    static_shapes: bool = False,
) -> Planned:
    """Build a recipe's model by its shapes and watch a step of it.

    Args:
        section: The recipe's ``model``.
        tokenizer: The prepared tokenizer; None where it is not at hand, so that no row is added for its new tokens.
        optim_wrapper: The recipe's ``optim_wrapper``.
        workload: What a step brings.
        on_cpu: Whether the devices are processors, which compute attention block by block.
        static_shapes: Whether the devices want few shapes.

    Raises:
        UserError: The model cannot be built, or its config cannot be had.
        ConfigError: It is neither a :class:`~xrlhf.models.RewardModel` nor a :class:`~xrlhf.models.PolicyModel`, the
            kinds that can be watched.
    """
    options = {**section, "tokenizer": tokenizer}
    options.update({"static_shapes": True} if static_shapes else {})
    if "compile" in options:
        options["compile"] = False
    bits: dict[str, int] = {}
    for part in ("backbone", "reference"):
        if part in options:
            options[part], of_part = _without_quantisation(options[part], options.get("precision", "float32"))
            bits |= {} if of_part is None else {part: of_part}
    with shapes_alone():
        model = MODELS.build(options)
        if not isinstance(model, (RewardModel, PolicyModel)):
            raise ConfigError(
                f"model.type is {type(model).__name__}: memory and time are planned for a RewardModel or a PolicyModel"
            )
        if not on_cpu and options.get("attention", "auto") in _FUSED:
            for transformers_model in model.transformers_models():
                plan_fused_attention(transformers_model)
    batch = workload.batch
    needs = step_needs(model, batch, optim_wrapper, sizes_of(model, bits))
    computed = model.count_flops()(batch)
    if model.gradient_checkpointing:
        computed += matrix_flops(model.hf_model, forward_only=True).of(batch.segments)
    return Planned(
        model=type(model.hf_model).__name__,
        layout=model.layout,
        precision=model.precision,
        checkpointing=model.gradient_checkpointing,
        needs=needs,
        flops_per_token=computed / batch.num_tokens,
        uses_lora=model.uses_lora,
        reference=getattr(model, "reference_kind", None),
    )


def _without_quantisation(backbone: Any, precision: str) -> tuple[Any, int | None]:
    """The backbone's section without ``quantization``, whose layers compute in ``precision``, and its bits."""
    quantised = backbone.get("quantization") if isinstance(backbone, Mapping) else None
    if not quantised:
        return backbone, None
    plain = {name: value for name, value in backbone.items() if name != "quantization"}
    return {**plain, "dtype": precision}, 4 if quantised.get("load_in_4bit") else 8


def plan_by_strategy(
    planned: Planned, workload: Workload, num_devices: int, own: Mapping[str, Any]
) -> dict[str, DevicePlan]:
    """The plan of every strategy that so many devices can have.

    Args:
        planned: The model.
        workload: What a step brings to one of them.
        num_devices: How many there are.
        own: The recipe's own ``strategy`` section, whose options belong to the strategy that it names.
    """
    plans = {}
    for name in _PLAIN_FIRST:
        preset = STRATEGIES_BY_NAME[name]
        kind: type[SingleStrategy] = preset["type"]
        if (name == "single") != (num_devices == 1) and name in ("single", "ddp"):
            continue
        options = {key: value for key, value in preset.items() if key != "type"}
        if own.get("type") == name:
            options.update({key: value for key, value in own.items() if key != "type"})
        plans[name] = plan_strategy(
            kind,
            options,
            planned.needs,
            num_devices=num_devices,
            micro_batches=workload.micro_batches,
            precision=planned.precision,
        )
    return plans


def own_strategy(recipe: Config) -> dict[str, Any]:
    """The recipe's ``strategy`` with its short name as ``type``, where it has one."""
    section = recipe.get("strategy") or {}
    section = {"type": section} if isinstance(section, str) else dict(section)
    kind = section.get("type")
    if isinstance(kind, str) and "." in kind:
        kind = resolve(kind)
    if isinstance(kind, str):
        section["type"] = kind.removeprefix("deepspeed_")
    elif kind is not None:
        section["type"] = next(
            (
                name
                for name, preset in STRATEGIES_BY_NAME.items()
                if preset["type"] is kind
                and all(section.get(key, False) == value for key, value in preset.items() if key != "type")
            ),
            kind.__name__,
        )
    return section


def plan_lines(
    planned: Planned, workload: Workload, plans: Mapping[str, DevicePlan], hardware: Hardware, num_devices: int
) -> Iterator[str]:
    """The plan in words and a table.

    Args:
        planned: The model.
        workload: What a step brings to one device.
        plans: By strategy.
        hardware: What a device is.
        num_devices: How many there are.
    """
    sizes = planned.needs.sizes
    yield "# ---- model, by its shapes"
    yield f"{sizes.num_weights:,} parameters, {sizes.num_trained:,} of them trained"
    kept = "activations recomputed" if planned.checkpointing else "activations kept"
    name = str(planned.precision).removeprefix("torch.")
    yield f"{planned.model}, {planned.layout} rows, {name}, {kept}"
    if planned.reference is not None:
        yield f"compared with {_REFERENCES[planned.reference]}"
    if planned.needs.note:
        yield f"activations are a rule of thumb, and can be far off: {planned.needs.note}"
    yield "# ---- a step"
    yield f"from {workload.source}"
    yield (
        f"{workload.all_tokens:,.0f} tokens on {num_devices:,} device(s), {workload.tokens:,.0f} on the busiest: "
        f"{workload.micro_batches} micro-batch(es) of at most {workload.batch.num_tokens:,} tokens"
    )
    share = workload.all_tokens / (workload.tokens * num_devices)
    if share < 0.8:
        yield f"devices have work for {share:.0%} of the time: raise groups_per_step, or take fewer devices"
    seconds = None if hardware.flops is None else planned.flops_per_token * workload.tokens / hardware.flops
    yield f"# ---- memory of one device of {num_devices:,} in GiB, and time of a step"
    yield from _table(plans, hardware, seconds)
    yield from hardware.missing
    yield _advice(plans, hardware, seconds, planned)


_REFERENCES = {
    "adapter_off": "itself without its adapters, which holds no more weights",
    "copy": "a frozen copy of itself, whose weights are counted too",
    "model": "another model, whose weights are counted too",
    "cached": "log-probabilities from disk",
}
_COLUMNS = ("weights", "gradients", "optimizer", "activations", "buffers")


def _table(plans: Mapping[str, DevicePlan], hardware: Hardware, seconds: float | None) -> Iterator[str]:
    rows = [["strategy", *_COLUMNS, "total", "fits", "host", "sent", "step at least", "peak in"]]
    for name, plan in plans.items():
        peak = plan.peak
        fits = "?" if hardware.room is None else "yes" if _fits(plan, hardware) else "no"
        took = step_seconds(plan, hardware, seconds)
        rows.append(
            [
                name,
                *(_gib(getattr(peak, column)) for column in _COLUMNS),
                _gib(peak.total),
                fits,
                _gib(plan.host),
                _gib(plan.link),
                "?" if took is None else f"{took:.3g} s",
                peak.name,
            ]
        )
    yield from aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines with columns below each other, the first and the last to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *middle, last in rows:
        cells = (cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells, last]).rstrip()


def step_seconds(plan: DevicePlan, hardware: Hardware, seconds: float | None) -> float | None:
    """Least time of a step: what is computed at the full rate hides what is moved, or the other way round."""
    if seconds is None:
        return None
    link = 0.0 if hardware.link is None else (plan.link + plan.host_link) / hardware.link
    return max(seconds, link)


def _fits(plan: DevicePlan, hardware: Hardware) -> bool:
    # Where host and device are one memory, nothing is gained by moving it.
    total = plan.peak.total + (plan.host if hardware.is_cpu else 0.0)
    return hardware.room is not None and total <= hardware.room


def _advice(plans: Mapping[str, DevicePlan], hardware: Hardware, seconds: float | None, planned: Planned) -> str:
    """The one line that says what to do."""
    order = list(plans)
    if hardware.room is None:
        least = min(order, key=lambda name: (plans[name].peak.total, order.index(name)))
        return f"least memory: --strategy {least}, {_gib(plans[least].peak.total)} GiB a device"
    fitting = [name for name in order if _fits(plans[name], hardware)]
    if fitting:
        best = min(fitting, key=lambda name: (step_seconds(plans[name], hardware, seconds) or 0.0, order.index(name)))
        left = hardware.room - plans[best].peak.total
        return f"take --strategy {best}: {_gib(plans[best].peak.total)} GiB a device, {_gib(left)} GiB are left"
    least = min(order, key=lambda name: plans[name].peak.total)
    peak = plans[least].peak
    ways = [] if planned.checkpointing else ["model.gradient_checkpointing=True"]
    if peak.activations > 0.3 * peak.total:
        ways.append("a smaller token_budget or max_length")
        if planned.checkpointing and not planned.needs.on_host:
            ways.append("model.activation_offload=True")
    if planned.reference == "copy":
        ways.append("model.reference='cached'")
    if not planned.uses_lora:
        ways.append("adapters (model.lora)")
    ways.append("more devices")
    return (
        f"nothing fits into {_gib(hardware.room)} GiB, nine tenths of a device: {least} comes closest with "
        f"{_gib(peak.total)} GiB; try {', '.join(ways[:-1])}{' or ' if ways[:-1] else ''}{ways[-1]}"
    )


def _gib(size: float) -> str:
    value = size / 2**30
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.01 or not value else f"{value:.4f}"
