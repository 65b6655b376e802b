"""The only place that turns a recipe into a runner."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mmengine.config import Config
from torch import nn
from transformers import PreTrainedTokenizerBase

from xrlhf.config.resolve import find_component, resolve
from xrlhf.config.secrets import mask_secrets
from xrlhf.data.dataset import GroupDataset
from xrlhf.data.loader import EvalLoader, StepLoader
from xrlhf.data.prompts import PromptDataset, PromptEvalLoader, PromptLoader
from xrlhf.devices import Device, find_device
from xrlhf.engine.checkpoint import find_checkpoints, is_sharded, remove_leftovers
from xrlhf.engine.launch import Ranks
from xrlhf.engine.logging import StepLogProcessor, check_log_level, start_logging
from xrlhf.engine.objective_check import check_attributes, check_draws_answers, check_objective, check_targets
from xrlhf.engine.pinning import pin_revisions
from xrlhf.engine.runner import GroupRunner
from xrlhf.engine.strategies import STRATEGIES_BY_NAME, DistributedStrategy, SingleStrategy
from xrlhf.errors import CheckpointError, ConfigError
from xrlhf.files import replacing
from xrlhf.registry import DATASETS, MODELS, TOKENIZERS
from xrlhf.rl import RewardSource, Rollouts

__all__ = [
    "Parts",
    "build_both_rollouts",
    "build_dataset",
    "build_eval_loader",
    "build_model",
    "build_parts",
    "build_prompt_eval_loader",
    "build_prompt_loaders",
    "build_prompts",
    "build_rewards",
    "build_rollouts",
    "build_runner",
    "build_tokenizer",
    "build_train_loader",
    "check_length",
    "holds_prompts",
    "section_of",
    "seed_of",
    "strategy_config",
    "work_dir_of",
]

logger = logging.getLogger("xrlhf")

_MAX_SEED = 2**32 - 1
_VALIDATES = {False: "GroupValLoop", True: "RewardValLoop"}
_RUNTIME_SECTIONS = ("default_hooks", "custom_hooks", "log_processor", "visualizer", "log_level", "default_scope")


@dataclass
class Parts:
    """What a recipe's sections become, before a runner holds them."""

    tokenizer: PreTrainedTokenizerBase
    model: nn.Module
    train_loader: StepLoader | PromptLoader
    val_loader: EvalLoader | PromptEvalLoader | None

    @property
    def draws_answers(self) -> bool:
        """Whether the run learns from answers of its own."""
        return isinstance(self.train_loader, PromptLoader)


def section_of(recipe: Config, name: str) -> dict[str, Any]:
    """A section of a recipe as a dict.

    Raises:
        ConfigError: It is missing, or no dict.
    """
    if name not in recipe:
        raise ConfigError(f"{recipe.filename or 'the recipe'} has no section {name!r}")
    section = recipe[name].to_dict() if hasattr(recipe[name], "to_dict") else recipe[name]
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name} must be a dict, got {type(section).__name__}")
    return dict(section)


def seed_of(recipe: Config) -> int:
    """The run's seed: ``randomness.seed``, 0 if it is not set.

    Raises:
        ConfigError: It is no whole number from 0 to 2**32 - 1, all that numpy takes.
    """
    seed = (recipe.get("randomness") or {}).get("seed")
    seed = 0 if seed is None else seed
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= _MAX_SEED:
        raise ConfigError(f"the seed must be a whole number from 0 to {_MAX_SEED}, got {seed!r}")
    return seed


def work_dir_of(recipe: Config) -> Path:
    """Where a recipe's run goes: its ``work_dir``, ``work_dirs/NAME`` if it has none."""
    return Path(recipe.get("work_dir") or Path("work_dirs") / Path(recipe.filename or "run").stem)


def build_tokenizer(recipe: Config) -> PreTrainedTokenizerBase:
    """The prepared tokenizer of a recipe."""
    return TOKENIZERS.build(section_of(recipe, "tokenizer"))


def build_model(
    recipe: Config, tokenizer: PreTrainedTokenizerBase, device: Device | None = None, **changes: Any
) -> nn.Module:
    """The model of a recipe, on the CPU, laid out for ``device``; random heads and weights come from the seed.

    Args:
        recipe: The recipe.
        tokenizer: Its prepared tokenizer.
        device: Where the model is going to compute; None for the CPU.
        changes: Options in place of those of the recipe's ``model``.

    Raises:
        DeviceError: The device has no autocast for the model's precision, or cannot compile it.
    """
    import torch

    torch.manual_seed(seed_of(recipe))
    options = {**section_of(recipe, "model"), **changes, "tokenizer": tokenizer}
    if device is not None and device.static_shapes:
        options["static_shapes"] = True
    if device is not None and options.get("compile") is True:
        options["compile"] = device.compile_backend
    model = MODELS.build(options)
    if device is not None:
        device.check_precision(getattr(model, "precision", torch.float32))
    return model


def build_dataset(recipe: Config, section: str, tokenizer: PreTrainedTokenizerBase) -> GroupDataset:
    """The data set of a recipe's dataloader section (``train_dataloader`` or ``val_dataloader``).

    Raises:
        ConfigError: It has none, or one of prompts alone.
    """
    loader = section_of(recipe, section)
    if "dataset" not in loader:
        raise ConfigError(f"{section} has no 'dataset'")
    if holds_prompts(recipe, section):
        raise ConfigError(
            f"{section} of {recipe.filename or 'the recipe'} holds prompts alone, whose answers are drawn while "
            "training goes on: an ActorCritic learns from them, and `xrlhf train RECIPE --dry-run` says what became of "
            "its rows"
        )
    return DATASETS.build({"type": GroupDataset, **loader["dataset"], "tokenizer": tokenizer})


def _loader_options(recipe: Config, section: str, needed: set[str], optional: set[str]) -> dict[str, Any]:
    options = {key: value for key, value in section_of(recipe, section).items() if key != "dataset"}
    takes = f"it takes dataset, {', '.join(sorted(needed | optional))}"
    if unknown := sorted(set(options) - needed - optional):
        raise ConfigError(f"{section} has no option {unknown[0]!r}; {takes}")
    if missing := sorted(needed - set(options)):
        raise ConfigError(f"{section} needs the option {missing[0]!r}; {takes}")
    return options


def build_eval_loader(recipe: Config, tokenizer: PreTrainedTokenizerBase, ranks: Ranks | None = None) -> EvalLoader:
    """The validation set of a recipe, this process's share of it."""
    ranks = ranks or Ranks()
    options = _loader_options(recipe, "val_dataloader", {"token_budget"}, set())
    dataset = build_dataset(recipe, "val_dataloader", tokenizer)
    return EvalLoader(dataset, **options, rank=ranks.rank, world_size=ranks.world_size)


def build_train_loader(recipe: Config, tokenizer: PreTrainedTokenizerBase, ranks: Ranks) -> StepLoader:
    """The training set of a recipe, in steps, of which this process sees its share."""
    options = _loader_options(recipe, "train_dataloader", {"groups_per_step", "token_budget"}, {"shuffle"})
    dataset = build_dataset(recipe, "train_dataloader", tokenizer)
    return StepLoader(dataset, seed=seed_of(recipe), rank=ranks.rank, world_size=ranks.world_size, **options)


def holds_prompts(recipe: Config, section: str) -> bool:
    """Whether a dataloader's section names prompts, whose answers are drawn while training goes on."""
    dataset = section_of(recipe, section).get("dataset")
    kind = dataset.get("type") if isinstance(dataset, Mapping) else None
    return (find_component(kind) if isinstance(kind, str) else kind) is PromptDataset


def build_prompts(recipe: Config, section: str, tokenizer: PreTrainedTokenizerBase) -> PromptDataset:
    """The prompts of a recipe's dataloader section."""
    return DATASETS.build({**section_of(recipe, section)["dataset"], "tokenizer": tokenizer})


def build_prompt_loaders(
    recipe: Config, tokenizer: PreTrainedTokenizerBase, ranks: Ranks
) -> tuple[PromptLoader, PromptEvalLoader | None]:
    """The prompts of a recipe to learn from and to be judged by, of which this process sees its share."""
    options = _loader_options(recipe, "train_dataloader", {"prompts_per_rollout", "token_budget"}, {"shuffle"})
    prompts = build_prompts(recipe, "train_dataloader", tokenizer)
    loader = PromptLoader(prompts, seed=seed_of(recipe), rank=ranks.rank, world_size=ranks.world_size, **options)
    return loader, build_prompt_eval_loader(recipe, tokenizer, ranks) if recipe.get("val_dataloader") else None


def build_prompt_eval_loader(
    recipe: Config, tokenizer: PreTrainedTokenizerBase, ranks: Ranks | None = None
) -> PromptEvalLoader:
    """The prompts of a recipe to be judged by, this process's share of them.

    Raises:
        ConfigError: Its ``val_dataloader`` holds something else.
    """
    ranks = ranks or Ranks()
    if not holds_prompts(recipe, "val_dataloader"):
        raise ConfigError("train_dataloader holds prompts: set val_dataloader.dataset.type to PromptDataset too")
    _loader_options(recipe, "val_dataloader", set(), set())
    prompts = build_prompts(recipe, "val_dataloader", tokenizer)
    return PromptEvalLoader(prompts, rank=ranks.rank, world_size=ranks.world_size)


def build_parts(recipe: Config, ranks: Ranks, device: Device | None = None) -> Parts:
    """Build tokenizer, data and model of a recipe, the model for ``device``."""
    tokenizer = build_tokenizer(recipe)
    if holds_prompts(recipe, "train_dataloader"):
        prompts, val_prompts = build_prompt_loaders(recipe, tokenizer, ranks)
        model = build_model(recipe, tokenizer, device)
        check_draws_answers(model, "train_dataloader")
        return Parts(tokenizer, model, prompts, val_prompts)
    train_loader = build_train_loader(recipe, tokenizer, ranks)
    val_loader = build_eval_loader(recipe, tokenizer, ranks) if recipe.get("val_dataloader") else None
    model = build_model(recipe, tokenizer, device)
    for section, loader in (("train_dataloader", train_loader), ("val_dataloader", val_loader)):
        if loader is not None:
            check_length(section, loader.dataset.encoder.max_length, getattr(model, "max_conversation_length", None))
    check_objective(model, "train_dataloader", train_loader.dataset)
    train_loader.makes_mismatched = getattr(model, "needs_divergence", False)
    if train_loader.makes_mismatched and train_loader.groups_per_step < 2:
        raise ConfigError(
            "the loss puts the answers of a step to each other's prompts and needs two groups or more: set "
            "train_dataloader.groups_per_step to 2 at least, or estimate_kl=False of the loss"
        )
    if val_loader is not None:
        check_attributes(model, "val_dataloader", val_loader.dataset)
        check_targets(model, "val_dataloader", val_loader.dataset)
    return Parts(tokenizer, model, train_loader, val_loader)


def build_rollouts(
    recipe: Config,
    section: str,
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    device: Device,
    prompts: Mapping[str, Any],
) -> Rollouts:
    """What draws answers from a policy, by the section ``rollouts`` or ``val_rollouts`` of a recipe.

    Args:
        recipe: The recipe.
        section: The section's name.
        policy: What answers, where they are drawn in this process.
        tokenizer: Its tokenizer.
        device: Where it is going to compute.
        prompts: The data sets that are asked, by the name of their section.

    Raises:
        ConfigError: Prompts and answers together are longer than the model reads.
    """
    options = section_of(recipe, section)
    rollouts = _made(section, options, policy=policy, tokenizer=tokenizer, device=device)
    limit = getattr(policy, "max_conversation_length", None)
    room = (options.get("sampling") or {}).get("max_new_tokens")
    for name, dataset in prompts.items():
        if limit is not None and isinstance(room, int) and dataset.max_length + room > limit:
            raise ConfigError(
                f"{name}.dataset.max_length is {dataset.max_length} and {section}.sampling.max_new_tokens {room}, but "
                f"the model reads at most {limit} tokens: lower one of them"
            )
    return cast(Rollouts, rollouts)


def build_both_rollouts(recipe: Config, parts: Parts, device: Device) -> tuple[Rollouts, Rollouts]:
    """What draws answers for training, and for validation: the same where the recipe has no ``val_rollouts``.

    Raises:
        ConfigError: As :func:`build_rollouts`.
    """
    to_train = {"train_dataloader": parts.train_loader.dataset}
    to_judge = {} if parts.val_loader is None else {"val_dataloader": parts.val_loader.dataset}
    given = (parts.model, parts.tokenizer, device)
    if not recipe.get("val_rollouts"):
        both = build_rollouts(recipe, "rollouts", *given, to_train | to_judge)
        return both, both
    of_training = build_rollouts(recipe, "rollouts", *given, to_train)
    return of_training, build_rollouts(recipe, "val_rollouts", *given, to_judge)


def build_rewards(recipe: Config, device: Device) -> RewardSource:
    """The weighted sum of the rewards that a recipe lists.

    Raises:
        ConfigError: It lists none, or something that is none.
    """
    from xrlhf.rl.rewards import WeightedRewards

    listed = recipe.get("rewards")
    if not isinstance(listed, (list, tuple)) or not listed:
        raise ConfigError(
            f"{recipe.filename or 'the recipe'} has no list 'rewards' of what answers are rewarded by, such as "
            "rewards = [dict(type=RewardModelReward, path=...)]"
        )
    return WeightedRewards(
        [
            _made(f"rewards.{number}", spec, **({} if _names_device(spec) else {"device": device}))
            for number, spec in enumerate(listed)
        ]
    )


def _names_device(spec: Any) -> bool:
    """Whether a reward is to compute elsewhere than the policy."""
    return isinstance(spec, Mapping) and spec.get("device") is not None


def _made(where: str, spec: Any, **injected: Any) -> Any:
    """What a dict with ``type`` names, with those of the builder's arguments that it takes.

    Raises:
        ConfigError: It is no such dict, or has options that are not taken.
    """
    if not isinstance(spec, Mapping) or "type" not in spec:
        raise ConfigError(f"{where} must be a dict with 'type', got {type(spec).__name__}")
    kind = find_component(spec["type"]) if isinstance(spec["type"], str) else spec["type"]
    taken = inspect.signature(kind).parameters
    options = {name: value for name, value in spec.items() if name != "type"}
    options |= {name: value for name, value in injected.items() if name in taken}
    try:
        return kind(**options)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_length(section: str, max_length: int, limit: int | None) -> None:
    """Say at the start what would otherwise stop the run at the first long conversation."""
    if limit is not None and max_length > limit:
        raise ConfigError(
            f"{section}.dataset.max_length is {max_length}, but the model reads at most {limit} tokens: set max_length "
            f"to {limit} or less"
        )


def strategy_config(recipe: Config, ranks: Ranks, device: Device) -> dict[str, Any]:
    """What the runner builds its strategy from: the recipe's, or by the number of processes.

    Raises:
        ConfigError: An unknown name, or one that does not fit the number of processes.
    """
    config = recipe.get("strategy") or {}
    config = {"type": config} if isinstance(config, str) else dict(config)
    _refuse_sequence_parallel(recipe, config)
    chosen = config.pop("type", None) or ("ddp" if ranks.is_distributed else "single")
    if isinstance(chosen, str) and "." not in chosen:
        # XTuner's users know DeepSpeed's stages by this longer name too.
        preset = STRATEGIES_BY_NAME.get(chosen.removeprefix("deepspeed_"))
        if preset is None:
            raise ConfigError(f"unknown strategy {chosen!r}: choose one of {', '.join(STRATEGIES_BY_NAME)}")
        config = {**preset, **config}
        strategy = config["type"]
    else:
        strategy = resolve(chosen) if isinstance(chosen, str) else chosen
    if strategy is SingleStrategy and ranks.world_size > 1:
        raise ConfigError(
            f"strategy 'single' trains in one process and {ranks.world_size} were started: choose 'ddp', or start one"
        )
    if issubclass(strategy, DistributedStrategy) and not ranks.is_distributed:
        name = chosen if isinstance(chosen, str) else strategy.__name__
        raise ConfigError(
            f"strategy {name!r} needs processes to share the work: set NPROC_PER_NODE, or leave --strategy out"
        )
    if device.rewrites_model and not strategy.keeps_model_whole:
        raise ConfigError(
            f"device {device.name!r} rewrites the model, and {strategy.__name__} splits it among the processes: choose "
            "device 'cpu', or strategy 'ddp'"
        )
    return {**config, "type": strategy, "device": device}


def _refuse_sequence_parallel(recipe: Config, strategy: dict[str, Any]) -> None:
    """Say what there is for long conversations, where another framework's option for them is used."""
    for name in ("sequence_parallel", "sequence_parallel_size"):
        asked = recipe.get(name, strategy.get(name, 1))
        if asked not in (None, False, 1):
            raise ConfigError(
                f"{name}={asked!r}: one conversation is not split over devices here; a group has to fit one. For long "
                "ones set model.gradient_checkpointing=True, then model.activation_offload=True, and leave it out"
            )
        strategy.pop(name, None)


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
    work_dir = work_dir_of(recipe)
    check_log_level(recipe.get("log_level"))
    _check_start(work_dir, resume, load_from)
    start_logging(ranks.rank)
    if device is None:
        device = find_device(recipe.get("device"))
        device.set_device(ranks.local_rank)
    strategy = strategy_config(recipe, ranks, device)
    parts = build_parts(recipe, ranks, device)
    pinned, unpinned = pin_revisions(recipe)
    for line in unpinned:
        logger.info("%s", line)
    runner = GroupRunner(
        model=parts.model,
        work_dir=str(work_dir),
        train_dataloader=parts.train_loader,
        optim_wrapper=section_of(recipe, "optim_wrapper"),
        param_scheduler=recipe.get("param_scheduler"),
        train_cfg=section_of(recipe, "train_cfg"),
        **(
            {}
            if parts.val_loader is None
            else {
                "val_dataloader": parts.val_loader,
                "val_cfg": recipe.get("val_cfg") or {"type": f"xrlhf.engine.loops.{_VALIDATES[parts.draws_answers]}"},
                "val_evaluator": {},
            }
        ),
        strategy=strategy,
        resume=resume,
        load_from=load_from,
        launcher=ranks.launcher,
        env_cfg={},
        randomness={"seed": seed_of(recipe)},
        # mmengine prints and stores this one; the parts above are built from the recipe itself.
        cfg=Config(mask_secrets(pinned), filename=recipe.filename, format_python_code=False),
        **{
            "log_processor": {"type": StepLogProcessor},
            **{name: recipe[name] for name in _RUNTIME_SECTIONS if name in recipe},
        },
    )
    if parts.draws_answers:
        runner.rollouts, runner.val_rollouts = build_both_rollouts(recipe, parts, device)
        runner.reward_source = build_rewards(recipe, device)
    if ranks.rank == 0:
        remove_leftovers(Path(runner.work_dir))
        _report_data(parts, Path(runner.work_dir))
    logger.info(
        "device %s, strategy %s, %d process(es)", device.describe(), type(runner.strategy).__name__, ranks.world_size
    )
    return runner


def _check_start(work_dir: Path, resume: bool | str, load_from: str | None) -> None:
    """Refuse a start that would mix two runs, or go on from nothing, before anything is built."""
    for option, path in (("--resume", resume), ("--load-from", load_from)):
        if isinstance(path, str) and path != "auto" and not (Path(path).is_file() or is_sharded(Path(path))):
            raise CheckpointError(f"{option} {path}: there is no such checkpoint file")
    existing = find_checkpoints(work_dir)
    if existing and not resume:
        raise CheckpointError(
            f"{work_dir} already holds {existing[0].path.name}: add --resume to go on from it, or choose another "
            "--work-dir"
        )
    if resume is True and not existing:
        raise CheckpointError(f"--resume, but {work_dir} holds no checkpoint: use --resume auto, or leave it out")
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"work_dir {work_dir} cannot be made: {error.strerror}") from error


def _report_data(parts: Parts, work_dir: Path) -> None:
    loaders = {"train": parts.train_loader.dataset}
    if parts.val_loader is not None:
        loaders["val"] = parts.val_loader.dataset
    for split, dataset in loaders.items():
        for line in dataset.report_lines():
            logger.info("%s data: %s", split, line)
    report = {split: dataset.report() for split, dataset in loaders.items()}
    with replacing(work_dir / "data_report.json") as aside:
        aside.write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
