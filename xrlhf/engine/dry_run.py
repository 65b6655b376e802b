"""``--dry-run``: build everything a run needs, report it, and train nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from xrlhf.config.dump import recipe_text
from xrlhf.devices import Device, find_device
from xrlhf.engine.build import build_parts, section_of, strategy_config
from xrlhf.engine.launch import Ranks
from xrlhf.engine.optim import build_optim_wrapper, build_param_schedulers
from xrlhf.registry import LOOPS

__all__ = ["dry_run", "estimate_memory"]


def dry_run(recipe: Config, ranks: Ranks, device: Device | None = None) -> Iterator[str]:
    """The resolved recipe, the data, the model, the steps and a memory estimate, as lines.

    Args:
        recipe: A loaded recipe with its overrides applied.
        ranks: The processes that the run would have.
        device: Where it would compute; found as a run would if None.

    Raises:
        UserError: What a run with this recipe would raise before its first step.
    """
    device = device or find_device(recipe.get("device"))
    strategy_config(recipe, ranks, device)
    yield "# ---- resolved recipe"
    yield recipe_text(recipe).rstrip()
    parts = build_parts(recipe, ranks, device)
    yield "# ---- data"
    for split, loader in (("train", parts.train_loader), ("val", parts.val_loader)):
        if loader is not None:
            yield from (f"{split}: {line}" for line in loader.dataset.report_lines())
    loop = LOOPS.build({**section_of(recipe, "train_cfg"), "runner": None, "dataloader": parts.train_loader})
    optim_wrapper = build_optim_wrapper(parts.model, section_of(recipe, "optim_wrapper"))
    build_param_schedulers(recipe.get("param_scheduler"), optim_wrapper, loop.max_iters)
    yield "# ---- model"
    total, trainable = _count(parts.model)
    yield f"{total:,} parameters, {trainable:,} of them trained"
    yield "# ---- steps"
    groups = loop.max_iters * parts.train_loader.groups_per_step
    dataset = parts.train_loader.dataset
    mean_tokens = float(dataset.num_tokens().mean())
    plan = parts.train_loader.plan(0)
    yield f"{loop.max_iters:,} optimizer steps of {parts.train_loader.groups_per_step} groups: {groups:,} groups"
    yield f"about {groups * mean_tokens:,.0f} tokens to compute, {mean_tokens:.1f} per group"
    yield f"step 1 has {len(plan.micro_batches[0])} micro-batch(es) on each of {ranks.world_size} process(es)"
    yield "# ---- memory, estimated for one device"
    for name, size in estimate_memory(parts.model, parts.train_loader.token_budget).items():
        yield f"{name:<12} {size / 2**20:>12,.1f} MiB"
    yield "nothing was trained"


def _count(model: nn.Module) -> tuple[int, int]:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def estimate_memory(model: Any, token_budget: int) -> dict[str, float]:
    """Bytes that training needs on one device that holds the whole model.

    Weights and gradients count as they are held, Adam's two moments as float32. Activations are what the backward
    pass of a gated transformer layer keeps per token: about 10 vectors of the hidden and 3 of the intermediate size,
    at the width of the autocast type, or one hidden vector per layer plus one whole layer under checkpointing.

    Args:
        model: A reward model.
        token_budget: Tokens of one micro-batch.

    Returns:
        Bytes by part, and their sum as ``total``.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    moments = sum(p.numel() * 8 for p in trained)
    config = model.hf_model.config
    hidden, layers = config.hidden_size, config.num_hidden_layers
    intermediate = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * hidden
    width = 4 if model.precision is torch.float32 else 2
    per_layer = (10 * hidden + 3 * intermediate) * width
    if any(getattr(module, "gradient_checkpointing", False) for module in model.hf_model.modules()):
        activations = token_budget * (layers * hidden * width + per_layer)
    else:
        activations = token_budget * layers * per_layer
    parts = {
        "weights": float(weights),
        "gradients": float(gradients),
        "optimizer": float(moments),
        "activations": float(activations),
    }
    return {**parts, "total": sum(parts.values())}
