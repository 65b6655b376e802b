"""The files of a Hugging Face directory, in the words of transformers 5 and of older readers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.errors import UserError, error_line
from xrlhf.export.card import ModelCard, write_card
from xrlhf.export.directory import new_directory
from xrlhf.models.adapters import merge_adapter_of
from xrlhf.models.group_model import GroupModel
from xrlhf.models.loading import torch_dtype

__all__ = ["merged_model", "state_in", "write_tokenizer", "written_model"]

logger = logging.getLogger("xrlhf")


def state_in(dtype: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state with its floating-point tensors in another type."""
    wanted = torch_dtype(dtype)
    return {name: value.detach().to(wanted) if value.is_floating_point() else value for name, value in state.items()}


def merged_model(model: GroupModel) -> PreTrainedModel:
    """The transformers model with the adapters in its weights; ``model`` is used up."""
    if not model.uses_lora:
        return model.hf_model
    return merge_adapter_of(cast(PeftModel, model.backbone))


@contextmanager
def written_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    state: Mapping[str, Tensor],
    *,
    dtype: str,
    max_shard_size: str,
    card: ModelCard,
) -> Iterator[Path]:
    """Write a model and its tokenizer; yields the folder, to be completed, which becomes ``out`` after the block.

    The card is written last, when all that it describes is there.

    Args:
        model: The model, without adapters; its config is written as it is.
        tokenizer: The tokenizer it was trained with.
        out: A directory that does not exist yet, or is empty.
        state: Its weights as they are to be saved.
        dtype: Their type.
        max_shard_size: Largest file, such as ``"5GB"``.
        card: What the card says beside what the directory tells.

    Raises:
        UserError: ``out`` is not empty or cannot be written.
    """
    with new_directory(out) as aside:
        try:
            model.save_pretrained(aside, state_dict=dict(state), max_shard_size=max_shard_size)
        except SafetensorError as error:
            raise UserError(f"{out} could not be written: {error_line(error)}") from error
        _edit_json(aside / "config.json", lambda values: _with_older_keys(values, dtype))
        write_tokenizer(aside, tokenizer, model.config.model_type)
        yield aside
        write_card(aside, out.name, card)
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
