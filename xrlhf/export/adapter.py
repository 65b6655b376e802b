"""Adapters of reward models, with their head, and of policies: as directories for peft, and merged into their base."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

from mmengine.config import Config
from peft import PeftModel, TaskType
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from xrlhf.errors import ModelError, UserError, error_line
from xrlhf.export.card import ModelCard, write_card
from xrlhf.export.directory import check_new_directory, new_directory
from xrlhf.export.model_files import write_tokenizer
from xrlhf.export.policy import write_policy
from xrlhf.export.reward import card_of_run, trained_model, write_reward_model
from xrlhf.export.training_facts import public_name
from xrlhf.models.adapters import adapter_of, adapter_weights, find_adapter, merge_adapter, tokenizer_location
from xrlhf.models.causal_lm import causal_lm_with_adapter
from xrlhf.models.loading import HEAD_NAMES, backbone_from_pretrained, fit_embeddings, score_head, torch_dtype
from xrlhf.models.location import pretrained_location
from xrlhf.models.policy_model import PolicyModel
from xrlhf.models.quantised import is_quantised
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer, read_tokenizer

__all__ = ["export_adapter", "merge_into_base", "save_adapter"]

logger = logging.getLogger("xrlhf")


def export_adapter(recipe: Config, checkpoint: Path, out: Path, *, dtype: str = "float32") -> None:
    """Convert a checkpoint to a directory that holds its adapter and its head, without the base.

    Args:
        recipe: The recipe it was trained with.
        checkpoint: An ``iter_N.pth``, or the folder ``iter_N`` of a sharded one.
        out: A directory that does not exist yet, or is empty.
        dtype: Type of the saved weights.

    Raises:
        CheckpointError: The checkpoint is damaged or of another architecture.
        ModelError: The recipe trains no adapter, or one that is of no use without its base.
        UserError: ``out`` is not empty.
    """
    torch_dtype(dtype)
    check_new_directory(out)
    model, tokenizer = trained_model(recipe, checkpoint)
    save_adapter(model, tokenizer, out, dtype=dtype, card=card_of_run(recipe, checkpoint, model, tokenizer))


def save_adapter(
    model: RewardModel | PolicyModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    dtype: str = "float32",
    card: ModelCard | None = None,
) -> None:
    """Write a model's adapter and its tokenizer into ``out``, which appears only when it is complete.

    The head of a reward model is part of it.

    ``PeftModel.from_pretrained`` puts it on its base; ``AutoPeftModelForSequenceClassification``, or for a policy
    ``AutoPeftModelForCausalLM``, finds the base by the name in ``adapter_config.json``. Rows of tokens that the project
    added are part of it.

    Args:
        model: A reward model or a policy with adapters; it stays as it is.
        tokenizer: The tokenizer it was trained with.
        out: A directory that does not exist yet, or is empty.
        dtype: Type of the saved weights.
        card: What the card says; what the model itself tells if None.

    Raises:
        ModelError: The model has no adapters, or they are of no use without its base.
        UserError: ``out`` is not empty or cannot be written.
    """
    check_new_directory(out)
    wanted = torch_dtype(dtype)
    if not model.uses_lora:
        raise ModelError("the recipe trains all weights, so there is no adapter: leave --adapter out")
    if isinstance(model, RewardModel) and model.head.num_outputs != 1:
        raise ModelError("the adapter's head predicts attributes, which peft cannot tell apart: leave --adapter out")
    new_tokens = getattr(tokenizer, "xrlhf_new_tokens", [])
    token_ids = [cast(int, tokenizer.convert_tokens_to_ids(token)) for token in new_tokens]
    config, weights = adapter_of(cast(PeftModel, model.backbone), token_ids)
    if card is None:
        card = ModelCard("reward" if isinstance(model, RewardModel) else "policy")
    with new_directory(out) as aside:
        try:
            save_file(
                {name: value.to(wanted) for name, value in weights.items()},
                aside / "adapter_model.safetensors",
                metadata={"format": "pt"},
            )
        except SafetensorError as error:
            raise UserError(f"{out} could not be written: {error_line(error)}") from error
        config.save_pretrained(str(aside))
        write_tokenizer(aside, tokenizer, model.hf_model.config.model_type)
        write_card(aside, out.name, card)
    logger.info("wrote the adapter to %s; its base is %s", out, config.base_model_name_or_path)
    if is_quantised(model.hf_model):
        logger.warning(
            "the adapter was trained on a quantised base: on the base in full precision the model is slightly another "
            "one; without --adapter the export is what was trained"
        )


def merge_into_base(base: str, adapter: str, out: Path, *, dtype: str = "float32", max_shard_size: str = "5GB") -> None:
    """Merge an adapter into its base, and write the model: a reward model's with its head, or a policy's.

    The tokenizer is the adapter's own, with its chat template, where it brings one, and else the base's.

    Args:
        base: The base, a Hugging Face directory or a hub name; read in float32, whatever the adapter was trained on.
        adapter: A directory or a hub name with an ``adapter_config.json``.
        out: A directory that does not exist yet, or is empty.
        dtype: Type of the saved weights.
        max_shard_size: Largest file, such as ``"5GB"``.

    Raises:
        ModelError: The adapter is for another base, or of a reward model and without its head.
        UserError: ``out`` is not empty.
    """
    torch_dtype(dtype)
    check_new_directory(out)
    location = pretrained_location(adapter, "adapter")
    of_policy = _is_of_policy(location)
    if of_policy:
        merged = causal_lm_with_adapter(base, location)
    else:
        backbone = backbone_from_pretrained(base)
        merged = merge_adapter(backbone, score_head(backbone)[0], location)
    tokenizer = prepare_tokenizer(read_tokenizer(tokenizer_location(location, base)))
    fit_embeddings(merged, tokenizer)
    write = write_policy if of_policy else write_reward_model
    card = ModelCard("policy" if of_policy else "reward", public_name(base))
    write(merged, tokenizer, out, dtype=dtype, max_shard_size=max_shard_size, card=card)


def _is_of_policy(location: str) -> bool:
    """Whether an adapter is a language model's, by its task, and by a score head that lies in it whatever its task."""
    config = find_adapter(location)
    if config is None:
        raise ModelError(f"{location!r} holds no adapter: there is no adapter_config.json")
    if config.task_type not in (TaskType.CAUSAL_LM, None):
        return False
    # Other tools save the adapter of a reward model under the task of its base.
    return not any(name in key.split(".") for key in adapter_weights(location) for name in HEAD_NAMES)
