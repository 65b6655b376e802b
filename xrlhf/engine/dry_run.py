"""``--dry-run``: build everything a run needs, report it, and train nothing; or plan a run from shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from torch import nn

from xrlhf.config.dump import recipe_text
from xrlhf.data.loader import StepLoader
from xrlhf.data.prompts import PromptLoader
from xrlhf.devices import Device, find_device
from xrlhf.engine.build import (
    Parts,
    build_both_rollouts,
    build_parts,
    build_prompts,
    build_rewards,
    build_tokenizer,
    build_train_loader,
    holds_prompts,
    section_of,
    strategy_config,
)
from xrlhf.engine.launch import Ranks
from xrlhf.engine.loops import RLTrainLoop
from xrlhf.engine.optim import build_optim_wrapper, build_param_schedulers
from xrlhf.engine.plan import (
    DRAWING,
    REWARDING,
    AssumedPrompts,
    Planned,
    RolloutNeeds,
    RolloutShape,
    Workload,
    assumed_workload,
    hardware_for,
    own_strategy,
    plan_by_strategy,
    plan_lines,
    plan_model,
    plan_of,
    rollout_lines,
    rollout_needs,
    workload_of,
    workload_of_rollouts,
)
from xrlhf.errors import ConfigError, DataError, ModelError, error_line
from xrlhf.models import PolicyModel, RewardModel
from xrlhf.registry import LOOPS
from xrlhf.rl.rollouts import sampling_of

__all__ = ["dry_run", "plan_run"]


def dry_run(recipe: Config, ranks: Ranks, device: Device | None = None) -> Iterator[str]:
    """The resolved recipe, the data, the model, the steps and the memory of a step, as lines.

    Args:
        recipe: A loaded recipe with its overrides applied.
        ranks: The processes that the run would have.
        device: Where it would compute; found as a run would if None.

    Raises:
        UserError: What a run with this recipe would raise before its first step.
    """
    device = device or find_device(recipe.get("device"))
    strategy = strategy_config(recipe, ranks, device)
    yield "# ---- resolved recipe"
    yield recipe_text(recipe).rstrip()
    parts = build_parts(recipe, ranks, device)
    yield "# ---- data"
    for split, loader in (("train", parts.train_loader), ("val", parts.val_loader)):
        if loader is not None:
            yield from (f"{split}: {line}" for line in loader.dataset.report_lines())
    loop = LOOPS.build({**section_of(recipe, "train_cfg"), "runner": None, "dataloader": parts.train_loader})
    if isinstance(loop, RLTrainLoop):
        loop.check_model(parts.model)
        build_both_rollouts(recipe, parts, device)
        build_rewards(recipe, device)
    optim_wrapper = build_optim_wrapper(parts.model, section_of(recipe, "optim_wrapper"))
    build_param_schedulers(recipe.get("param_scheduler"), optim_wrapper, loop.max_iters)
    yield "# ---- model"
    total, trainable = _count(parts.model)
    yield f"{total:,} parameters, {trainable:,} of them trained"
    yield "# ---- steps"
    yield from _steps(loop, parts, ranks)
    yield "# ---- memory of one device, at the peak of a step"
    if isinstance(loop, RLTrainLoop):
        workload, shape = _rollouts_of(recipe, loop, parts.train_loader)  # type: ignore[arg-type]
        yield from _memory(recipe, parts.tokenizer, workload, strategy, ranks, device, shape)
    elif isinstance(parts.train_loader, StepLoader) and isinstance(parts.model, (RewardModel, PolicyModel)):
        yield from _memory(recipe, parts.tokenizer, workload_of(parts.train_loader), strategy, ranks, device)
    else:
        yield f"it is planned for a RewardModel or a PolicyModel, and model.type is {type(parts.model).__name__}"
    yield "nothing was trained"


def _steps(loop: Any, parts: Parts, ranks: Ranks) -> Iterator[str]:
    """How many steps there are, and what they hold."""
    if isinstance(parts.train_loader, PromptLoader):
        yield f"{loop.max_iters:,} optimizer steps: {loop.length_line()}"
        mean = float(parts.train_loader.dataset.num_tokens().mean())
        yield f"{mean:.1f} tokens in a prompt on average; answers are drawn while the run goes on"
        return
    groups = loop.max_iters * parts.train_loader.groups_per_step
    dataset = parts.train_loader.dataset
    mean_tokens = float(dataset.num_tokens().mean())
    plan = parts.train_loader.plan(0)
    yield f"{loop.max_iters:,} optimizer steps of {parts.train_loader.groups_per_step} groups: {groups:,} groups"
    yield f"about {groups * mean_tokens:,.0f} tokens to compute, {mean_tokens:.1f} per group"
    yield f"step 1 has {len(plan.micro_batches[0])} micro-batch(es) on each of {ranks.world_size} process(es)"


def _rollouts_of(
    recipe: Config, loop: RLTrainLoop, loader: PromptLoader, why: str | None = None
) -> tuple[Workload, RolloutShape]:
    """What a rollout brings to one device."""
    return workload_of_rollouts(
        loader,
        num_answers=loop.num_answers,
        new_tokens=sampling_of(section_of(recipe, "rollouts").get("sampling")).max_new_tokens,
        epochs=loop.steps_per_rollout // loop.minibatches,
        minibatches=loop.minibatches,
        why=why,
    )


def _memory(
    recipe: Config,
    tokenizer: Any,
    workload: Workload,
    strategy: dict[str, Any],
    ranks: Ranks,
    device: Device,
    shape: RolloutShape | None = None,
) -> Iterator[str]:
    planned = plan_model(
        section_of(recipe, "model"),
        tokenizer,
        section_of(recipe, "optim_wrapper"),
        workload,
        on_cpu=device.type == "cpu",
        static_shapes=device.static_shapes,
    )
    options = {name: value for name, value in strategy.items() if name not in ("type", "device")}
    needs = None
    if shape is not None:
        needs = _rollout_needs(recipe, planned, shape, on_cpu=device.type == "cpu", memory=device.total_memory())
    plan = plan_of(strategy["type"], options, planned, workload, ranks.world_size, needs)
    if planned.needs.note:
        yield f"activations are a rule of thumb, and can be far off: {planned.needs.note}"
    peak = plan.peak
    for name in ("weights", "gradients", "optimizer", "activations", "buffers", "total"):
        yield f"{name:<12} {getattr(peak, name) / 2**20:>12,.1f} MiB"
    of_step = f", with a micro-batch of {workload.batch.num_tokens:,} tokens"
    yield f"in {peak.name}{'' if peak.name in (DRAWING, REWARDING) else of_step}"
    if plan.host:
        yield f"and {plan.host / 2**20:,.1f} MiB in the memory of the host"
    if shape is not None and needs is not None:
        yield from rollout_lines(shape, needs, num_devices=ranks.world_size, flops=None)


def _rollout_needs(
    recipe: Config, planned: Planned, shape: RolloutShape, *, on_cpu: bool, memory: float | None
) -> RolloutNeeds:
    """What a rollout of a recipe takes on one device."""
    judged = planned.judge_flops_per_token * shape.prompts * shape.group_tokens
    return rollout_needs(recipe, planned.section, shape, judge_flops=judged, on_cpu=on_cpu, memory=memory)


def plan_run(
    recipe: Config,
    num_devices: int,
    device: Device,
    *,
    is_named: bool = False,
    memory_gib: float | None = None,
    tflops: float | None = None,
    link_gbs: float | None = None,
) -> Iterator[str]:
    """Memory and time of a recipe on so many devices under every strategy, as lines; no weights are needed.

    Args:
        recipe: A loaded recipe with its overrides applied.
        num_devices: GPUs, or processes on a CPU.
        device: The device of this machine.
        is_named: Whether somebody asked for that device.
        memory_gib: Memory of a device, GiB; that of this machine's if None.
        tflops: What a device reaches in matrix products, TFLOP/s; measured on this machine's if None.
        link_gbs: What a device sends to the others, GB/s.

    Raises:
        ConfigError: A number that is not above 0, or a model that cannot be planned.
        ModelError: The model's config cannot be had.
    """
    if num_devices < 1:
        raise ConfigError(f"--gpus must be at least 1, got {num_devices}")
    # Refuses what a run would refuse.
    strategy_config(recipe, Ranks(world_size=num_devices, launcher="pytorch"), device)
    on_cpu = is_named and device.type == "cpu"
    draws = holds_prompts(recipe, "train_dataloader")
    find = _tokenizer_and_rollouts if draws else _tokenizer_and_workload
    tokenizer, workload, shape = find(recipe, num_devices)
    planned = plan_model(
        section_of(recipe, "model"),
        tokenizer,
        section_of(recipe, "optim_wrapper"),
        workload,
        on_cpu=on_cpu,
        static_shapes=device.static_shapes,
    )
    hardware = hardware_for(
        device,
        num_devices,
        planned.precision,
        is_named=is_named,
        memory_gib=memory_gib,
        tflops=tflops,
        link_gbs=link_gbs,
    )
    needs = None
    if shape is not None:
        needs = _rollout_needs(recipe, planned, shape, on_cpu=on_cpu, memory=hardware.memory)
    plans = plan_by_strategy(planned, workload, num_devices, own_strategy(recipe), needs)
    rollout = None if shape is None or needs is None else (shape, needs)
    yield from plan_lines(planned, workload, plans, hardware, num_devices, rollout)


def _tokenizer_and_rollouts(recipe: Config, num_devices: int) -> tuple[Any, Workload, RolloutShape]:
    """The same of a run that draws answers, and what a device has of a rollout."""
    tokenizer, why = None, None
    section = section_of(recipe, "train_dataloader")
    try:
        tokenizer = build_tokenizer(recipe)
        prompts: Any = build_prompts(recipe, "train_dataloader", tokenizer)
    except (ModelError, DataError) as error:
        why = error_line(error, 200)
        prompts = AssumedPrompts(section["dataset"], section.get("prompts_per_rollout", 1))
    options = {name: value for name, value in section.items() if name != "dataset"}
    loader = PromptLoader(prompts, seed=0, world_size=num_devices, **options)
    loop = LOOPS.build({**section_of(recipe, "train_cfg"), "runner": None, "dataloader": loader})
    return tokenizer, *_rollouts_of(recipe, loop, loader, why)


def _tokenizer_and_workload(recipe: Config, num_devices: int) -> tuple[Any, Workload, None]:
    """What the data brings; where tokenizer or data are out of reach, what is assumed in their place."""
    tokenizer = None
    try:
        tokenizer = build_tokenizer(recipe)
        loader = build_train_loader(recipe, tokenizer, Ranks(world_size=num_devices))
        return tokenizer, workload_of(loader), None
    except (ModelError, DataError) as error:
        why = error_line(error, 200)
        return tokenizer, assumed_workload(section_of(recipe, "train_dataloader"), num_devices, why), None


def _count(model: nn.Module) -> tuple[int, int]:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
