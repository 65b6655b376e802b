"""The only place that turns a recipe into a runner."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn
from transformers import PreTrainedTokenizerBase

from xrlhf.config.resolve import resolve
from xrlhf.data.dataset import GroupDataset
from xrlhf.data.loader import EvalLoader, StepLoader
from xrlhf.devices import Device, find_device
from xrlhf.engine.checkpoint import find_checkpoints
from xrlhf.engine.launch import Ranks
from xrlhf.engine.runner import GroupRunner
from xrlhf.engine.strategies import STRATEGY_NAMES
from xrlhf.errors import CheckpointError, ConfigError
from xrlhf.registry import DATASETS, MODELS, TOKENIZERS

__all__ = ["Parts", "build_dataset", "build_model", "build_parts", "build_runner", "build_tokenizer", "seed_of"]

logger = logging.getLogger("xrlhf")

_RUNTIME_SECTIONS = ("default_hooks", "custom_hooks", "log_processor", "visualizer", "log_level", "default_scope")


@dataclass
class Parts:
    """What a recipe's sections become, before a runner holds them."""

    tokenizer: PreTrainedTokenizerBase
    model: nn.Module
    train_loader: StepLoader
    val_loader: EvalLoader | None


def _section(recipe: Config, name: str) -> dict[str, Any]:
    if name not in recipe:
        raise ConfigError(f"{recipe.filename or 'the recipe'} has no section {name!r}")
    section = recipe[name].to_dict() if hasattr(recipe[name], "to_dict") else recipe[name]
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name} must be a dict, got {type(section).__name__}")
    return dict(section)


def seed_of(recipe: Config) -> int:
    """The run's seed: ``randomness.seed``, 0 if it is not set."""
    return int((recipe.get("randomness") or {}).get("seed") or 0)


def build_tokenizer(recipe: Config) -> PreTrainedTokenizerBase:
    """The prepared tokenizer of a recipe."""
    return TOKENIZERS.build(_section(recipe, "tokenizer"))


def build_model(recipe: Config, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The model of a recipe, on the CPU; random heads and weights come from the recipe's seed."""
    import torch

    torch.manual_seed(seed_of(recipe))
    return MODELS.build({**_section(recipe, "model"), "tokenizer": tokenizer})


def build_dataset(recipe: Config, section: str, tokenizer: PreTrainedTokenizerBase) -> GroupDataset:
    """The data set of a recipe's dataloader section (``train_dataloader`` or ``val_dataloader``)."""
    loader = _section(recipe, section)
    if "dataset" not in loader:
        raise ConfigError(f"{section} has no 'dataset'")
    return DATASETS.build({"type": GroupDataset, **loader["dataset"], "tokenizer": tokenizer})


def _loader_options(recipe: Config, section: str, allowed: set[str]) -> dict[str, Any]:
    options = {key: value for key, value in _section(recipe, section).items() if key != "dataset"}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ConfigError(f"{section} has no option {unknown[0]!r}; it takes dataset, {', '.join(sorted(allowed))}")
    return options


def build_parts(recipe: Config, ranks: Ranks) -> Parts:
    """Build tokenizer, data and model of a recipe."""
    tokenizer = build_tokenizer(recipe)
    train_set = build_dataset(recipe, "train_dataloader", tokenizer)
    train_options = _loader_options(recipe, "train_dataloader", {"groups_per_step", "token_budget", "shuffle"})
    place = {"rank": ranks.rank, "world_size": ranks.world_size}
    train_loader = StepLoader(train_set, seed=seed_of(recipe), **train_options, **place)
    val_loader = None
    if recipe.get("val_dataloader"):
        val_set = build_dataset(recipe, "val_dataloader", tokenizer)
        val_loader = EvalLoader(val_set, **_loader_options(recipe, "val_dataloader", {"token_budget"}), **place)
    return Parts(tokenizer, build_model(recipe, tokenizer), train_loader, val_loader)


def _strategy_config(recipe: Config, ranks: Ranks, device: Device) -> dict[str, Any]:
    config = recipe.get("strategy") or {}
    config = {"type": config} if isinstance(config, str) else dict(config)
    chosen = config.pop("type", None) or ("ddp" if ranks.is_distributed else "single")
    strategy = STRATEGY_NAMES.get(chosen) if isinstance(chosen, str) else chosen
    if strategy is None:
        if "." not in str(chosen):
            raise ConfigError(f"unknown strategy {chosen!r}: choose one of {', '.join(STRATEGY_NAMES)}")
        strategy = resolve(chosen)
    return {**config, "type": strategy, "device": device}


def build_runner(
    recipe: Config,
    *,
    ranks: Ranks | None = None,
    device: Device | None = None,
    resume: bool | str = False,
    load_from: str | None = None,
) -> GroupRunner:
    """Turn a recipe into a runner that is ready to train.

    Args:
        recipe: A loaded recipe with its overrides applied.
        ranks: This process among all.
        device: The device, already chosen by :func:`xrlhf.engine.launch.start_process_group`.
        resume: See :meth:`GroupRunner.load_or_resume`.
        load_from: A checkpoint whose weights to start from.

    Raises:
        UserError: The recipe, its data or its model is wrong.
    """
    ranks = ranks or Ranks()
    _check_start(Path(recipe.work_dir), resume)
    if device is None:
        device = find_device(recipe.get("device"))
        device.set_device(ranks.local_rank)
    parts = build_parts(recipe, ranks)
    runner = GroupRunner(
        model=parts.model,
        work_dir=recipe.work_dir,
        train_dataloader=parts.train_loader,
        optim_wrapper=_section(recipe, "optim_wrapper"),
        param_scheduler=recipe.get("param_scheduler"),
        train_cfg=_section(recipe, "train_cfg"),
        **(
            {}
            if parts.val_loader is None
            else {
                "val_dataloader": parts.val_loader,
                "val_cfg": recipe.get("val_cfg") or {"type": "xrlhf.engine.loops.GroupValLoop"},
                "val_evaluator": {},
            }
        ),
        strategy=_strategy_config(recipe, ranks, device),
        resume=resume,
        load_from=load_from,
        launcher=ranks.launcher,
        env_cfg={},
        randomness={"seed": seed_of(recipe)},
        cfg=recipe,
        **{name: recipe[name] for name in _RUNTIME_SECTIONS if name in recipe},
    )
    if ranks.rank == 0:
        _report_data(parts, Path(runner.work_dir))
    logger.info(
        "device %s, strategy %s, %d process(es)", device.describe(), type(runner.strategy).__name__, ranks.world_size
    )
    return runner


def _check_start(work_dir: Path, resume: bool | str) -> None:
    """Refuse a start that would mix two runs, or go on from nothing, before anything is built."""
    existing = find_checkpoints(work_dir)
    if existing and not resume:
        raise CheckpointError(
            f"{work_dir} already holds {existing[0].path.name}: add --resume to go on from it, or choose another "
            "--work-dir"
        )
    if resume is True and not existing:
        raise CheckpointError(f"--resume, but {work_dir} holds no checkpoint: use --resume auto, or leave it out")


def _report_data(parts: Parts, work_dir: Path) -> None:
    loaders = {"train": parts.train_loader.dataset}
    if parts.val_loader is not None:
        loaders["val"] = parts.val_loader.dataset
    for split, dataset in loaders.items():
        for line in dataset.report_lines():
            logger.info("%s data: %s", split, line)
    aside = work_dir / "data_report.json.tmp"
    report = {split: dataset.report() for split, dataset in loaders.items()}
    aside.write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(aside, work_dir / "data_report.json")
