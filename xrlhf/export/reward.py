"""Reward models as Hugging Face directories that every loader of the field scores alike."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from mmengine.config import Config
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.engine.build import build_model, build_tokenizer
from xrlhf.engine.checkpoint import load_checkpoint, load_strictly
from xrlhf.errors import ModelError, UserError, error_line
from xrlhf.export.directory import check_new_directory, new_directory
from xrlhf.export.internlm2 import complete_internlm2, with_architecture
from xrlhf.models.adapters import merge_adapter_of
from xrlhf.models.heads import AttributeHead, Head, describe_head
from xrlhf.models.internlm2 import InternLM2ForRewardModel
from xrlhf.models.loading import score_head, torch_dtype
from xrlhf.models.reward_model import RewardModel

__all__ = ["export_checkpoint", "save_reward_model", "trained_model", "write_reward_model", "write_tokenizer"]

logger = logging.getLogger("xrlhf")


def export_checkpoint(
    recipe: Config,
    checkpoint: Path,
    out: Path,
    *,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    keep_attributes: bool = False,
    architecture: str | None = None,
) -> None:
    """Convert a checkpoint to a Hugging Face directory, adapters merged.

    Args:
        recipe: The recipe it was trained with.
        checkpoint: An ``iter_N.pth``.
        out: A directory that does not exist yet, or is empty.
        dtype: Type of the saved weights.
        max_shard_size: Largest file, such as ``"5GB"``.
        keep_attributes: As in :func:`save_reward_model`.
        architecture: As in :func:`xrlhf.export.internlm2.with_architecture`.

    Raises:
        CheckpointError: The checkpoint is damaged or of another architecture.
        UserError: ``out`` is not empty.
    """
    torch_dtype(dtype)
    check_new_directory(out)
    model, tokenizer = trained_model(recipe, checkpoint)
    kept = _head_to_keep(model.head, keep_attributes)
    written = with_architecture(_merged(model), architecture)
    write_reward_model(written, tokenizer, out, dtype=dtype, max_shard_size=max_shard_size, head=model.head, kept=kept)


def trained_model(recipe: Config, checkpoint: Path) -> tuple[RewardModel, PreTrainedTokenizerBase]:
    """The reward model of a recipe with the weights of a checkpoint, and its tokenizer.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or of another architecture.
        ModelError: The recipe's model is no reward model.
    """
    state = load_checkpoint(checkpoint)
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    if not isinstance(model, RewardModel):
        raise ModelError(f"the recipe's model is a {type(model).__name__}: only reward models convert so far")
    load_strictly(model, state["state_dict"], model.checkpoint_names(), str(checkpoint))
    return model, tokenizer


def save_reward_model(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    keep_attributes: bool = False,
    architecture: str | None = None,
) -> None:
    """Write a reward model and its tokenizer into ``out``, which appears only when it is complete.

    ``config.json`` says ``num_labels`` 1 and ``problem_type`` regression (so that pipelines and servers return raw
    scores) and names a pad token that is not the end token; keys that older readers look for stand beside the new
    ones. The chat template is inside ``tokenizer_config.json``. The model can be trained on afterwards: its weights,
    adapters and attention stay as they are.

    Args:
        model: The reward model; adapters are merged in a copy, so one with adapters is held twice for a while.
        tokenizer: The tokenizer it was trained with.
        out: A directory that does not exist yet, or is empty.
        dtype: Type of the saved weights.
        max_shard_size: Largest file, such as ``"5GB"``.
        keep_attributes: Of a model with an attribute head, write one label for each attribute, and their weights in
            the same order as ``attribute_weights`` into ``config.json``: :class:`~xrlhf.evaluation.scorer.Scorer` then
            gives the same score, and other tools the attributes. By default the weights are folded into a layer with
            one label, which every tool reads as the score.
        architecture: As in :func:`xrlhf.export.internlm2.with_architecture`.

    Raises:
        ModelError: The tokenizer has no pad token of its own, the model's adapters cannot be merged, or it has no
            attributes to keep.
        UserError: ``out`` is not empty or cannot be written.
    """
    check_new_directory(out)
    kept = _head_to_keep(model.head, keep_attributes)
    merged = _merged(copy.deepcopy(model)) if model.uses_lora else model.hf_model
    written = with_architecture(merged, architecture)
    write_reward_model(written, tokenizer, out, dtype=dtype, max_shard_size=max_shard_size, head=model.head, kept=kept)


def _head_to_keep(head: Head, keep_attributes: bool) -> AttributeHead | None:
    """The head that the export describes; None where it gives one score."""
    if not keep_attributes:
        return None
    if not isinstance(head, AttributeHead):
        raise ModelError("the model gives one score and has no attributes to keep: leave keep_attributes out")
    return head


def _fold(state: dict[str, Tensor], model: PreTrainedModel, head: AttributeHead) -> None:
    """Put the weights of the attributes into the score layer of a state."""
    name, layer = score_head(model, head.num_outputs)
    weight, bias = head.folded(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
    state[f"{name}.weight"] = weight
    if bias is not None:
        state[f"{name}.bias"] = bias


def _merged(model: RewardModel) -> PreTrainedModel:
    """The model with its adapters in its weights; ``model`` is used up."""
    if not model.uses_lora:
        return model.hf_model
    return merge_adapter_of(cast(PeftModel, model.backbone))


def write_reward_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    dtype: str,
    max_shard_size: str,
    head: Head | None = None,
    kept: AttributeHead | None = None,
) -> None:
    """Write a plain ``...ForSequenceClassification`` model as :func:`save_reward_model` does.

    Args:
        model: The model, without adapters.
        tokenizer: The tokenizer it was trained with.
        out: A directory that does not exist yet, or is empty.
        dtype: Type of the saved weights.
        max_shard_size: Largest file, such as ``"5GB"``.
        head: What its score layer gives; one score if None.
        kept: The head to describe in ``config.json``; None folds the attributes of ``head`` into one score.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError("the tokenizer needs a pad token that is not its end token: see prepare_tokenizer")
    config = model.config
    describe_head(config, kept)
    config.problem_type = "regression"
    config.pad_token_id = tokenizer.pad_token_id
    wanted = torch_dtype(dtype)
    held = dict(model.state_dict())
    if isinstance(head, AttributeHead) and kept is None:
        _fold(held, model, head)
    state = {name: value.detach().to(wanted) if value.is_floating_point() else value for name, value in held.items()}
    with new_directory(out) as aside:
        try:
            model.save_pretrained(aside, state_dict=state, max_shard_size=max_shard_size)
        except SafetensorError as error:
            raise UserError(f"{out} could not be written: {error_line(error)}") from error
        _edit_json(aside / "config.json", lambda values: _with_older_keys(values, dtype))
        write_tokenizer(aside, tokenizer, config.model_type)
        if isinstance(model, InternLM2ForRewardModel):
            complete_internlm2(aside, tokenizer)
    logger.info("wrote %s to %s", type(model).__name__, out)


def write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, model_type: str) -> None:
    """Write a tokenizer so that older readers take it too, its chat template inside ``tokenizer_config.json``."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    _edit_json(folder / "tokenizer_config.json", lambda values: _with_older_tokenizer_keys(values, tokenizer))
    _check_tokenizer(folder, tokenizer, model_type)


def _check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, model_type: str) -> None:
    """Warn where ``AutoTokenizer`` reads other ids from the export than training did."""
    if getattr(tokenizer, "_auto_map", None):
        # Loading it again would ask whether its code may run.
        return
    text = "An 'odd' text: 3 x 12.5 = 37.5 Ünïcode\n\nlines,  blanks"
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)  # type: ignore[assignment]
    reloaded = AutoTokenizer.from_pretrained(folder)
    if reloaded(text)["input_ids"] != tokenizer(text)["input_ids"]:
        # Seen with transformers 5.23: it takes the tokenizer class of some model types from a table of its own.
        logger.warning(
            "AutoTokenizer takes the exported tokenizer for a %s, because the model is a %s, and would give other ids "
            "than training: load it with PreTrainedTokenizerFast.from_pretrained, as xrlhf does",
            type(reloaded).__name__,
            model_type,
        )


def _with_older_keys(values: dict[str, Any], dtype: str) -> dict[str, Any]:
    """``config.json`` with the type that was saved, and keys that transformers 4 reads beside those that 5 writes."""
    older: dict[str, Any] = {"torch_dtype": dtype}
    rope = values.get("rope_parameters") or {}
    # Gemma 3 has one set of rope parameters for each kind of layer.
    if isinstance(local := rope.get("sliding_attention"), dict) and "rope_theta" in local:
        older["rope_local_base_freq"] = local["rope_theta"]
        rope = rope.get("full_attention") or {}
    if "rope_theta" in rope:
        older["rope_theta"] = rope["rope_theta"]
        fraction = rope.get("partial_rotary_factor")
        if fraction is not None:
            older["partial_rotary_factor"] = fraction
        if values.get("model_type") == "gpt_neox":
            older |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": 1.0 if fraction is None else fraction}
        scaled = rope.get("rope_type", "default") != "default"
        scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
        older["rope_scaling"] = scaling if scaled else None
    return {**older, **values, "dtype": dtype}


def _with_older_tokenizer_keys(values: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """``tokenizer_config.json`` with all that training relied on spelt out, in names that transformers 4 knows too."""
    edited = {
        **values,
        # Some tokenizer classes have other defaults, and transformers 4 gives these flags the last word on BOS.
        "add_bos_token": _begins_with(tokenizer, tokenizer.bos_token_id),
        "add_eos_token": _ends_with(tokenizer, tokenizer.eos_token_id),
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
    }
    if edited.get("tokenizer_class") == "TokenizersBackend":
        edited["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(edited.get("extra_special_tokens"), list):
        edited["additional_special_tokens"] = edited.pop("extra_special_tokens")
    return edited


def _begins_with(tokenizer: PreTrainedTokenizerBase, token_id: int | None) -> bool:
    return token_id is not None and tokenizer("x")["input_ids"][0] == token_id


def _ends_with(tokenizer: PreTrainedTokenizerBase, token_id: int | None) -> bool:
    return token_id is not None and tokenizer("x")["input_ids"][-1] == token_id


def _edit_json(path: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(edit(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
