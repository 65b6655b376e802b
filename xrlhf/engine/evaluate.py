"""A recipe's validation outside of training: on a checkpoint, or on an exported directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.config.resolve import resolve
from xrlhf.data.loader import EvalLoader
from xrlhf.devices import Device
from xrlhf.engine.build import (
    build_eval_loader,
    build_model,
    build_prompt_eval_loader,
    build_rewards,
    build_rollouts,
    build_tokenizer,
    section_of,
    seed_of,
    work_dir_of,
)
from xrlhf.engine.checkpoint import is_sharded, load_checkpoint, load_strictly
from xrlhf.engine.loops import RewardValLoop
from xrlhf.engine.objective_check import check_attributes, check_targets
from xrlhf.engine.one_process import OneProcess
from xrlhf.engine.reference_cache import attach_reference
from xrlhf.engine.rollout import POLICY_FOLDER
from xrlhf.errors import ConfigError, ModelError
from xrlhf.evaluation.batches import evaluate_batches
from xrlhf.evaluation.set_loss import SetLoss
from xrlhf.models.actor_critic import ActorCritic
from xrlhf.models.causal_lm import causal_lm_from_pretrained
from xrlhf.models.group_model import build_loss
from xrlhf.models.heads import head_of_config
from xrlhf.models.loading import backbone_from_pretrained
from xrlhf.models.policy_model import PolicyModel
from xrlhf.models.reward_model import RewardModel
from xrlhf.registry import LOOPS

__all__ = ["evaluate"]


def evaluate(recipe: Config, checkpoint: str, device: Device) -> dict[str, float]:
    """Metrics of a checkpoint on the validation set of a recipe.

    Args:
        recipe: The recipe.
        checkpoint: An ``iter_N.pth`` or ``iter_N`` trained with it, or a Hugging Face directory.
        device: Where to compute.

    Raises:
        ConfigError: The recipe has no validation set.
        DeviceError: The device cannot compute in the recipe's precision.
        CheckpointError: The checkpoint is missing, damaged or of another architecture.
        ModelError: The recipe's model is neither a reward model nor a policy.
    """
    if not recipe.get("val_dataloader"):
        raise ConfigError(f"{recipe.filename} has no val_dataloader to test on")
    if resolve(section_of(recipe, "model").get("type")) is ActorCritic:
        return _evaluate_by_rewards(recipe, checkpoint, device)
    tokenizer = build_tokenizer(recipe)
    is_directory = Path(checkpoint).is_dir() and not is_sharded(Path(checkpoint))
    if is_directory and resolve(section_of(recipe, "model").get("type")) is PolicyModel:
        policy = _policy_of_directory(recipe, checkpoint, tokenizer)
        return _evaluate_policy(policy, build_eval_loader(recipe, tokenizer), device)
    if is_directory:
        backbone = backbone_from_pretrained(checkpoint, require_head=True)
        # The loss adds its metrics; the head is the directory's own.
        model = RewardModel(
            backbone,
            precision=recipe.model.get("precision", "float32"),
            loss=_loss_for(backbone, recipe),
            static_shapes=device.static_shapes,
        )
    else:
        state = load_checkpoint(Path(checkpoint))
        built = build_model(recipe, tokenizer, device)
        if isinstance(built, PolicyModel):
            loader = build_eval_loader(recipe, tokenizer)
            if built.reference_kind == "cached":
                placed = OneProcess(built.to(device.torch_device), device)
                attach_reference(placed, loader.dataset, token_budget=loader.token_budget)
            load_strictly(built, state["state_dict"], built.checkpoint_names(), checkpoint)
            return _evaluate_policy(built, loader, device)
        if not isinstance(built, RewardModel):
            raise ModelError(f"the recipe's model is a {type(built).__name__}, which cannot be tested")
        model = built
        load_strictly(model, state["state_dict"], model.checkpoint_names(), checkpoint)
    loader = build_eval_loader(recipe, tokenizer)
    check_attributes(model, "val_dataloader", loader.dataset)
    device.check_precision(model.precision)
    model = model.to(device.torch_device).eval()
    return evaluate_batches(model, loader, device).compute(loader.dataset.names)


def _evaluate_by_rewards(recipe: Config, checkpoint: str, device: Device) -> dict[str, float]:
    """What the recipe's validation says of the answers of a checkpoint's policy to held-out prompts."""
    tokenizer = build_tokenizer(recipe)
    loader = build_prompt_eval_loader(recipe, tokenizer)
    loop: RewardValLoop = LOOPS.build(
        {**(recipe.get("val_cfg") or {"type": RewardValLoop}), "runner": None, "dataloader": loader}
    )
    rewards = build_rewards(recipe, device)
    policy = _drawing_policy(recipe, checkpoint, tokenizer, device).to(device.torch_device).eval()
    section = "val_rollouts" if recipe.get("val_rollouts") else "rollouts"
    rollouts = build_rollouts(recipe, section, policy, tokenizer, device, {"val_dataloader": loader.dataset})
    placed = OneProcess(policy, device, seed=seed_of(recipe))
    return loop.reward_metrics(placed, rollouts, rewards, work_dir_of(recipe) / POLICY_FOLDER)


def _drawing_policy(recipe: Config, checkpoint: str, tokenizer: PreTrainedTokenizerBase, device: Device) -> ActorCritic:
    """The policy of a checkpoint or a directory, with neither loss nor reference, which answers do not need."""
    options = section_of(recipe, "model")
    if Path(checkpoint).is_dir() and not is_sharded(Path(checkpoint)):
        kept = {name: options[name] for name in ("precision", "attention") if name in options}
        model = ActorCritic(causal_lm_from_pretrained(checkpoint), tokenizer=tokenizer, reference=None, **kept)
        device.check_precision(model.precision)
        return model
    state = load_checkpoint(Path(checkpoint))
    built = build_model(recipe, tokenizer, device, loss=None, reference=None, reference_device=None)
    assert isinstance(built, ActorCritic)
    load_strictly(built, state["state_dict"], built.checkpoint_names(), checkpoint)
    return built


def _policy_of_directory(recipe: Config, directory: str, tokenizer: PreTrainedTokenizerBase) -> PolicyModel:
    """The policy of a directory with the recipe's loss, compared with what training started from."""
    options = section_of(recipe, "model")
    loss = build_loss(options.get("loss"))
    kept = {name: options[name] for name in ("precision", "attention") if name in options}
    reference = options.get("reference", "auto")
    if getattr(loss, "needs_reference", False) and not isinstance(reference, Mapping):
        reference = options["backbone"]
    return PolicyModel(
        causal_lm_from_pretrained(directory), tokenizer=tokenizer, loss=loss, reference=reference, **kept
    )


def _evaluate_policy(model: PolicyModel, loader: EvalLoader, device: Device) -> dict[str, float]:
    check_targets(model, "val_dataloader", loader.dataset)
    device.check_precision(model.precision)
    found = SetLoss()
    found.add(model.to(device.torch_device).eval(), loader, device)
    return found.compute()


def _loss_for(backbone: PreTrainedModel, recipe: Config) -> Any:
    """The recipe's loss where the directory gives what the recipe's model gives; None where only its score is left."""
    head = recipe.model.get("head")
    names = () if head is None else tuple(head.get("weights") or ())
    return recipe.model.get("loss") if head_of_config(backbone.config).names == names else None
