"""A recipe's validation outside of training: on a checkpoint, or on an exported directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from transformers import PreTrainedModel

from xrlhf.devices import Device
from xrlhf.engine.build import build_eval_loader, build_model, build_tokenizer
from xrlhf.engine.checkpoint import load_checkpoint, load_strictly
from xrlhf.engine.objective_check import check_attributes
from xrlhf.errors import ConfigError, ModelError
from xrlhf.evaluation.batches import evaluate_batches
from xrlhf.models.heads import head_of_config
from xrlhf.models.loading import backbone_from_pretrained
from xrlhf.models.reward_model import RewardModel

__all__ = ["evaluate"]


def evaluate(recipe: Config, checkpoint: str, device: Device) -> dict[str, float]:
    """Metrics of a checkpoint on the validation set of a recipe.

    Args:
        recipe: The recipe.
        checkpoint: An ``iter_N.pth`` trained with it, or a Hugging Face directory.
        device: Where to compute.

    Raises:
        ConfigError: The recipe has no validation set.
        DeviceError: The device cannot compute in the recipe's precision.
        CheckpointError: The checkpoint is missing, damaged or of another architecture.
        ModelError: The recipe's model gives no scores.
    """
    if not recipe.get("val_dataloader"):
        raise ConfigError(f"{recipe.filename} has no val_dataloader to test on")
    tokenizer = build_tokenizer(recipe)
    if Path(checkpoint).is_dir():
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
        if not isinstance(built, RewardModel):
            raise ModelError(f"the recipe's model is a {type(built).__name__}: only reward models can be tested so far")
        model = built
        load_strictly(model, state["state_dict"], model.checkpoint_names(), checkpoint)
    loader = build_eval_loader(recipe, tokenizer)
    check_attributes(model, "val_dataloader", loader.dataset)
    device.check_precision(model.precision)
    model = model.to(device.torch_device).eval()
    return evaluate_batches(model, loader, device).compute(loader.dataset.names)


def _loss_for(backbone: PreTrainedModel, recipe: Config) -> Any:
    """The recipe's loss where the directory gives what the recipe's model gives; None where only its score is left."""
    head = recipe.model.get("head")
    names = () if head is None else tuple(head.get("weights") or ())
    return recipe.model.get("loss") if head_of_config(backbone.config).names == names else None
