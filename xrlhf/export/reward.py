"""Reward models as Hugging Face directories that every loader of the field scores alike."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from mmengine.config import Config
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.engine.build import build_model, build_tokenizer
from xrlhf.engine.checkpoint import load_checkpoint, load_strictly
from xrlhf.errors import ModelError
from xrlhf.export.directory import new_directory
from xrlhf.models.loading import torch_dtype
from xrlhf.models.reward_model import RewardModel

__all__ = ["export_checkpoint", "save_reward_model"]

logger = logging.getLogger("xrlhf")


def export_checkpoint(
    recipe: Config, checkpoint: Path, out: Path, *, dtype: str = "float32", max_shard_size: str = "5GB"
) -> None:
    """Convert a checkpoint to a Hugging Face directory, adapters merged.

    Args:
        recipe: The recipe it was trained with.
        checkpoint: An ``iter_N.pth``.
        out: A directory that does not exist yet, or is empty.
        dtype: Type of the saved weights.
        max_shard_size: Largest file, such as ``"5GB"``.

    Raises:
        CheckpointError: The checkpoint is damaged or of another architecture.
        UserError: ``out`` is not empty.
    """
    torch_dtype(dtype)
    state = load_checkpoint(checkpoint)
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    if not isinstance(model, RewardModel):
        raise ModelError(f"the recipe's model is a {type(model).__name__}: only reward models convert so far")
    load_strictly(model, state["state_dict"], model.checkpoint_names(), str(checkpoint))
    save_reward_model(model, tokenizer, out, dtype=dtype, max_shard_size=max_shard_size)


def save_reward_model(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
) -> None:
    """Write a reward model and its tokenizer into ``out``, which appears only when it is complete.

    ``config.json`` says ``num_labels`` 1 and ``problem_type`` regression (so that pipelines and servers return raw
    scores) and names a pad token that is not the end token; keys that older readers look for stand beside the new
    ones. The chat template is inside ``tokenizer_config.json``.

    Raises:
        ModelError: The tokenizer has no pad token of its own, or the model's adapters cannot be merged.
        UserError: ``out`` is not empty or cannot be written.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError("the tokenizer needs a pad token that is not its end token: see prepare_tokenizer")
    merged: PreTrainedModel = model.backbone.merge_and_unload() if model.uses_lora else model.hf_model  # type: ignore[operator,assignment]
    merged = merged.to(torch_dtype(dtype))  # type: ignore[arg-type]
    config = merged.config
    config.num_labels = 1
    config.problem_type = "regression"
    config.pad_token_id = tokenizer.pad_token_id
    config.architectures = [type(merged).__name__]
    # The packed attention is xrlhf's own; whoever loads the export chooses for itself.
    merged.set_attn_implementation("eager" if not getattr(merged, "_supports_sdpa", True) else "sdpa")
    with new_directory(out) as aside:
        merged.save_pretrained(aside, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(aside, save_jinja_files=False)
        _edit_json(aside / "config.json", lambda values: _with_older_keys(values, dtype))
        _edit_json(aside / "tokenizer_config.json", _with_older_tokenizer_keys)
    logger.info("wrote %s to %s", type(merged).__name__, out)


def _with_older_keys(values: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Keys that transformers 4 reads, beside those that 5 writes."""
    older: dict[str, Any] = {"torch_dtype": dtype}
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        older["rope_theta"] = rope["rope_theta"]
        scaled = rope.get("rope_type", "default") != "default"
        older["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"} if scaled else None
    return {**values, **{key: value for key, value in older.items() if key not in values}}


def _with_older_tokenizer_keys(values: dict[str, Any]) -> dict[str, Any]:
    if values.get("tokenizer_class") == "TokenizersBackend":
        return {**values, "tokenizer_class": "PreTrainedTokenizerFast"}
    return values


def _edit_json(path: Path, edit: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(edit(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
