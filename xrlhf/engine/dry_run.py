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
    build_rewards,
    build_tokenizer,
    build_train_loader,
    section_of,
    strategy_config,
)
from xrlhf.engine.launch import Ranks
from xrlhf.engine.loops import RLTrainLoop
from xrlhf.engine.optim import build_optim_wrapper, build_param_schedulers
from xrlhf.engine.plan import (
    Workload,
    assumed_workload,
    hardware_for,
    own_strategy,
    plan_by_strategy,
    plan_lines,
    plan_model,
    plan_strategy,
    workload_of,
)
from xrlhf.errors import ConfigError, DataError, ModelError, error_line
from xrlhf.models import PolicyModel, RewardModel
from xrlhf.registry import LOOPS

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
    if isinstance(parts.train_loader, StepLoader) and isinstance(parts.model, (RewardModel, PolicyModel)):
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


def _memory(
    recipe: Config, tokenizer: Any, workload: Workload, strategy: dict[str, Any], ranks: Ranks, device: Device
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
    plan = plan_strategy(
        strategy["type"],
        options,
        planned.needs,
        num_devices=ranks.world_size,
        micro_batches=workload.micro_batches,
        precision=planned.precision,
    )
    if planned.needs.note:
        yield f"activations are a rule of thumb, and can be far off: {planned.needs.note}"
    peak = plan.peak
    for name in ("weights", "gradients", "optimizer", "activations", "buffers", "total"):
        yield f"{name:<12} {getattr(peak, name) / 2**20:>12,.1f} MiB"
    yield f"in {peak.name}, with a micro-batch of {workload.batch.num_tokens:,} tokens"
    if plan.host:
        yield f"and {plan.host / 2**20:,.1f} MiB in the memory of the host"


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
    tokenizer, workload = _tokenizer_and_workload(recipe, num_devices)
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
    plans = plan_by_strategy(planned, workload, num_devices, own_strategy(recipe))
    yield from plan_lines(planned, workload, plans, hardware, num_devices)


def _tokenizer_and_workload(recipe: Config, num_devices: int) -> tuple[Any, Workload]:
    """What the data brings; where tokenizer or data are out of reach, what is assumed in their place."""
    tokenizer = None
    try:
        tokenizer = build_tokenizer(recipe)
        loader = build_train_loader(recipe, tokenizer, Ranks(world_size=num_devices))
        return tokenizer, workload_of(loader)
    except (ModelError, DataError) as error:
        why = error_line(error, 200)
        return tokenizer, assumed_workload(section_of(recipe, "train_dataloader"), num_devices, why)


def _count(model: nn.Module) -> tuple[int, int]:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
