"""A plan of memory and time as lines: every strategy beside the others, and which one to take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from mmengine.config import Config

from xrlhf.config.resolve import resolve
from xrlhf.engine.plan.fused_attention import plan_fused_attention
from xrlhf.engine.plan.hardware import Hardware
from xrlhf.engine.plan.rollout import DRAWING, REWARDING, RolloutNeeds, with_rollout
from xrlhf.engine.plan.step import StepNeeds, sizes_of, step_needs
from xrlhf.engine.plan.strategies import DevicePlan, plan_strategy
from xrlhf.engine.plan.workload import RolloutShape, Workload
from xrlhf.engine.strategies import STRATEGIES_BY_NAME, SingleStrategy
from xrlhf.errors import ConfigError
from xrlhf.models import ActorCritic, PolicyModel, RewardModel
from xrlhf.models.embeddings import embedding_weight
from xrlhf.models.flops import matrix_flops
from xrlhf.models.shapes import shapes_alone
from xrlhf.registry import MODELS
from xrlhf.structures import PackedBatch

__all__ = [
    "Planned",
    "aligned",
    "own_strategy",
    "plan_by_strategy",
    "plan_lines",
    "plan_model",
    "plan_of",
    "rollout_lines",
    "step_seconds",
]

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
        on_host: Bytes of a reference that stays in the memory of the host.
        section: The options that the model was built by.
        judge_flops_per_token: What policy, reference and critic compute for every token of a rollout before it is
            learnt from; 0 for models that draw no answers.
    """

    model: str
    layout: str
    precision: torch.dtype
    checkpointing: bool
    needs: StepNeeds
    flops_per_token: float
    uses_lora: bool = False
    reference: str | None = None
    on_host: int = 0
    section: Mapping[str, Any] = field(default_factory=dict)
    judge_flops_per_token: float = 0.0


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
    for part in ("backbone", "reference", "critic"):
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
    reference = getattr(model, "reference_kind", None)
    judged = _judge_flops(model, batch) if isinstance(model, ActorCritic) else 0.0
    on_host = 0
    if isinstance(model, PolicyModel) and model.keeps_reference_on_host:
        on_host = _take_reference_off(model)
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
        reference=reference,
        on_host=on_host,
        section=options,
        judge_flops_per_token=judged / batch.num_tokens,
    )


def _judge_flops(model: ActorCritic, batch: PackedBatch) -> float:
    """FLOPs of the forward passes of policy, reference and critic over a batch; of a reference on the host none."""
    assert batch.target_index is not None
    targets = len(batch.target_index)
    writers = [model.hf_model]
    if model.reference_kind is not None and not model.keeps_reference_on_host:
        writers.append(model.reference or model.hf_model)
    readers = [*writers, *([] if model.critic_model is None else [model.critic_model])]
    of_output = 2.0 * targets * sum(embedding_weight(writer).numel() for writer in writers)
    return of_output + sum(matrix_flops(part, forward_only=True).of(batch.segments, targets) for part in readers)


def _take_reference_off(model: PolicyModel) -> int:
    """Have a step run without the reference that the host computes; bytes of its weights."""
    assert model.reference is not None
    size = sum(weight.numel() * weight.element_size() for weight in model.reference.parameters())
    model.reference = None
    model.reference_kind = None
    return size


def plan_of(
    kind: type[SingleStrategy],
    options: Mapping[str, Any],
    planned: Planned,
    workload: Workload,
    num_devices: int,
    rollout: RolloutNeeds | None = None,
) -> DevicePlan:
    """The plan of one strategy.

    Args:
        kind: Its class.
        options: Its options.
        planned: The model.
        workload: What a step brings to a device.
        num_devices: How many devices there are.
        rollout: What a rollout takes, where answers are drawn.
    """
    plan = plan_strategy(
        kind,
        options,
        planned.needs,
        num_devices=num_devices,
        micro_batches=workload.micro_batches,
        precision=planned.precision,
    )
    plan = replace(plan, host=plan.host + planned.on_host)
    return plan if rollout is None else with_rollout(plan, rollout)


def _without_quantisation(backbone: Any, precision: str) -> tuple[Any, int | None]:
    """The backbone's section without ``quantization``, whose layers compute in ``precision``, and its bits."""
    quantised = backbone.get("quantization") if isinstance(backbone, Mapping) else None
    if not quantised:
        return backbone, None
    plain = {name: value for name, value in backbone.items() if name != "quantization"}
    return {**plain, "dtype": precision}, 4 if quantised.get("load_in_4bit") else 8


def plan_by_strategy(
    planned: Planned,
    workload: Workload,
    num_devices: int,
    own: Mapping[str, Any],
    rollout: RolloutNeeds | None = None,
) -> dict[str, DevicePlan]:
    """The plan of every strategy that so many devices can have.

    Args:
        planned: The model.
        workload: What a step brings to one of them.
        num_devices: How many there are.
        own: The recipe's own ``strategy`` section, whose options belong to the strategy that it names.
        rollout: What a rollout takes, where answers are drawn.
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
        plans[name] = plan_of(kind, options, planned, workload, num_devices, rollout)
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
    planned: Planned,
    workload: Workload,
    plans: Mapping[str, DevicePlan],
    hardware: Hardware,
    num_devices: int,
    rollout: tuple[RolloutShape, RolloutNeeds] | None = None,
) -> Iterator[str]:
    """The plan in words and a table.

    Args:
        planned: The model.
        workload: What a step brings to one device.
        plans: By strategy.
        hardware: What a device is.
        num_devices: How many there are.
        rollout: What a device has of a rollout and what that takes, where answers are drawn.
    """
    sizes = planned.needs.sizes
    yield "# ---- model, by its shapes"
    yield f"{sizes.num_weights:,} parameters, {sizes.num_trained:,} of them trained"
    kept = "activations recomputed" if planned.checkpointing else "activations kept"
    name = str(planned.precision).removeprefix("torch.")
    yield f"{planned.model}, {planned.layout} rows, {name}, {kept}"
    if planned.reference is not None:
        where = _REFERENCES["host" if planned.on_host else planned.reference]
        yield f"compared with {where}"
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
        yield f"devices have work for {share:.0%} of the time: raise {workload.groups_option}, or take fewer devices"
    seconds = None if hardware.flops is None else planned.flops_per_token * workload.tokens / hardware.flops
    yield f"# ---- memory of one device of {num_devices:,} in GiB, and time of a step"
    yield from _table(plans, hardware, seconds)
    yield from hardware.missing
    if rollout is not None:
        yield from rollout_lines(*rollout, num_devices=num_devices, flops=hardware.flops)
    yield _advice(plans, hardware, seconds, planned)


def rollout_lines(shape: RolloutShape, needs: RolloutNeeds, *, num_devices: int, flops: float | None) -> Iterator[str]:
    """What a rollout is and takes, in words.

    Args:
        shape: What a device has of it.
        needs: What that takes.
        num_devices: How many devices share it.
        flops: Of a device in a second; None where nobody said.
    """
    yield "# ---- a rollout"
    answers = shape.prompts * shape.num_answers
    how = f"{needs.at_once:,} at once" if needs.at_once else "by servers, whose memory and time are not planned"
    yield (
        f"{answers:,} answers of at most {shape.new_tokens:,} tokens for each of {num_devices:,} device(s), drawn "
        f"{how}; then {shape.steps} step(s)"
    )
    if needs.at_once:
        held = {"drawing": needs.drawing, "scoring": needs.rewarding, "reward models": needs.beside}
        yield ", ".join(f"{name} {_gib(size)} GiB" for name, size in held.items() if size)
    yield from needs.notes
    if flops is not None:
        drawn, judged, scored = (of / flops for of in (needs.draw_flops, needs.judge_flops, needs.reward_flops))
        yield (
            f"at least {drawn + judged + scored:.3g} s before the steps: drawing {drawn:.3g} s, log-probabilities "
            f"{judged:.3g} s, reward models {scored:.3g} s"
        )
        if needs.at_once:
            yield "drawing reads all weights for every token: with few answers at once that takes longer than computing"


_REFERENCES = {
    "adapter_off": "itself without its adapters, which holds no more weights",
    "copy": "a frozen copy of itself, whose weights are counted too",
    "model": "another model, whose weights are counted too",
    "host": "a model in the memory of the host, which computes it, in a time that is not counted",
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
        of_rollout = {
            DRAWING: "rollouts.max_batch_tokens",
            REWARDING: "token_budget of the rewards",
        }
        ways.append(f"a smaller {of_rollout.get(peak.name, 'token_budget or max_length')}")
        if planned.checkpointing and not planned.needs.on_host:
            ways.append("model.activation_offload=True")
    if planned.reference == "copy" and not planned.on_host:
        draws = planned.judge_flops_per_token > 0
        ways.append("model.reference_device='cpu'" if draws else "model.reference='cached'")
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
