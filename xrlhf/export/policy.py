"""Policies as Hugging Face directories."""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.export.card import ModelCard
from xrlhf.export.directory import check_new_directory
from xrlhf.export.internlm2 import complete_internlm2_policy
from xrlhf.export.model_files import merged_model, state_in, written_model
from xrlhf.models.generation import stop_ids
from xrlhf.models.internlm2 import InternLM2ForCausalLM
from xrlhf.models.policy_model import PolicyModel

__all__ = ["save_policy", "write_policy"]


def save_policy(
    model: PolicyModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
) -> None:
    """Write a policy and its tokenizer into ``out``, which appears only when it is complete.

    ``generation_config.json`` names the tokens that end an answer: the end of text, and what the chat template closes
    a turn with. The model can be trained on afterwards.

    Args:
        model: The policy; adapters are merged in a copy, so one with adapters is held twice for a while.
        tokenizer: The tokenizer it was trained with.
        out: A directory that does not exist yet, or is empty.
        dtype: Type of the saved weights.
        max_shard_size: Largest file, such as ``"5GB"``.

    Raises:
        ModelError: The model's adapters cannot be merged.
        UserError: ``out`` is not empty or cannot be written.
    """
    check_new_directory(out)
    merged = merged_model(copy.deepcopy(model)) if model.uses_lora else model.hf_model
    write_policy(merged, tokenizer, out, dtype=dtype, max_shard_size=max_shard_size, card=ModelCard("policy"))


def write_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    dtype: str,
    max_shard_size: str,
    card: ModelCard,
) -> None:
    """Write a plain ``...ForCausalLM`` model as :func:`save_policy` does, with a card."""
    ends = stop_ids(model, tokenizer)
    generation = model.generation_config
    generation.eos_token_id = ends[0] if len(ends) == 1 else list(ends) or None
    generation.pad_token_id = tokenizer.pad_token_id
    state = state_in(dtype, model.state_dict())
    with written_model(model, tokenizer, out, state, dtype=dtype, max_shard_size=max_shard_size, card=card) as aside:
        if isinstance(model, InternLM2ForCausalLM):
            complete_internlm2_policy(aside)
