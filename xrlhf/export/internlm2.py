"""InternLM2 models as the published ones are: with their code beside them, for transformers' Auto classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from xrlhf.errors import ModelError
from xrlhf.models.internlm2 import (
    InternLM2ForCausalLM,
    InternLM2ForRewardModel,
    causal_lm,
    configuration_internlm2,
    modeling_internlm2,
)
from xrlhf.models.tokenizer import ending_id

__all__ = ["as_llama", "complete_internlm2", "complete_internlm2_policy", "with_architecture"]

_CODE = (configuration_internlm2, modeling_internlm2)
_IMPORT_HERE, _IMPORT_THERE = "from xrlhf.models.internlm2.", "from ."
"""The files import one another by the package's name here, and as neighbours in an exported directory."""

_CONFIG = {"AutoConfig": "configuration_internlm2.InternLM2Config"}
_AUTO_MAP = {**_CONFIG, "AutoModel": "modeling_internlm2.InternLM2ForRewardModel"}
_POLICY_AUTO_MAP = {**_CONFIG, "AutoModelForCausalLM": "causal_lm.InternLM2ForCausalLM"}


def complete_internlm2(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add what ``AutoModel.from_pretrained(folder, trust_remote_code=True)`` needs to a saved model and tokenizer.

    Args:
        folder: Holds ``config.json``, the weights and the tokenizer's files.
        tokenizer: The tokenizer it was trained with; the token that its template writes last becomes
            ``reward_token_id``.

    Raises:
        ModelError: The tokenizer has no chat template, or one without an end.
    """
    if tokenizer.chat_template is None:
        raise ModelError(
            "an InternLM2 reward model reads conversations by a chat template, and the tokenizer has none: set "
            "chat_template in the recipe, such as 'chatml'"
        )
    _complete(folder, _CODE, {"auto_map": _AUTO_MAP, "reward_token_id": ending_id(tokenizer)})


def complete_internlm2_policy(folder: Path) -> None:
    """Add what ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` needs to a saved policy.

    Args:
        folder: As for :func:`complete_internlm2`.
    """
    _complete(folder, (*_CODE, causal_lm), {"auto_map": _POLICY_AUTO_MAP})


def _complete(folder: Path, modules: Sequence[ModuleType], entries: Mapping[str, Any]) -> None:
    """Put code beside a model, and entries into its config."""
    _write(folder / "config.json", {**_read(folder / "config.json"), **entries})
    for module in modules:
        source = Path(str(module.__file__))
        text = source.read_text(encoding="utf-8").replace(_IMPORT_HERE, _IMPORT_THERE)
        (folder / source.name).write_text(text, encoding="utf-8")
    _write(folder / "tokenizer.json", _with_older_merges(_read(folder / "tokenizer.json")))


def _with_older_merges(description: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer.json`` with merges as text, which tokenizers reads up to 0.19 too, unless a space is in a piece."""
    model = description["model"]
    merges = model.get("merges") or []
    if any(isinstance(merge, str) or any(" " in piece for piece in merge) for merge in merges):
        return description
    return {**description, "model": {**model, "merges": [" ".join(merge) for merge in merges]}}


_SHARED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act", "rms_norm_eps"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "initializer_range"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
"""What a config of Llama calls by the same name."""


def with_architecture(model: PreTrainedModel, name: str | None) -> PreTrainedModel:
    """``model`` as the class called ``name``.

    Args:
        model: A reward model or a policy, adapters merged.
        name: Its own class or, for InternLM2, ``"LlamaForSequenceClassification"``, of a policy
            ``"LlamaForCausalLM"``; None for its own.

    Raises:
        ModelError: Another name.
    """
    own = type(model).__name__
    if name in (None, own):
        return model
    if isinstance(model, (InternLM2ForRewardModel, InternLM2ForCausalLM)):
        llama = _llama_class(model).__name__
        if name == llama:
            return as_llama(model)
        own = f"{own} or {llama}"
    raise ModelError(f"architecture must be {own} for this model, got {name!r}")


def _llama_class(model: PreTrainedModel) -> type[LlamaForCausalLM] | type[LlamaForSequenceClassification]:
    return LlamaForCausalLM if isinstance(model, InternLM2ForCausalLM) else LlamaForSequenceClassification


def as_llama(
    model: InternLM2ForRewardModel | InternLM2ForCausalLM,
) -> LlamaForSequenceClassification | LlamaForCausalLM:
    """The same model in the layout of Llama, which loaders know without code of its own; the weights are copied."""
    config = model.config
    rope = {"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": float(config.rope_theta)}
    rope["rope_type"] = rope.pop("type", rope["rope_type"])
    own = (
        {"tie_word_embeddings": config.tie_word_embeddings}
        if isinstance(model, InternLM2ForCausalLM)
        else {"num_labels": model.v_head.out_features}
    )
    llama = _llama_class(model)(
        LlamaConfig(
            **{name: getattr(config, name) for name in _SHARED} | own,
            attention_bias=config.bias,
            rope_parameters=rope,
        )
    )
    with torch.no_grad():
        llama.load_state_dict(_llama_state(model))
    if isinstance(model, InternLM2ForCausalLM):
        llama.generation_config = model.generation_config
    return llama.eval()


_NAMES = {
    "model.tok_embeddings.": "model.embed_tokens.",
    ".attention_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.",
    ".feed_forward.w1.": ".mlp.gate_proj.",
    ".feed_forward.w2.": ".mlp.down_proj.",
    ".feed_forward.w3.": ".mlp.up_proj.",
    ".attention.wo.": ".self_attn.o_proj.",
    "v_head.": "score.",
    "output.": "lm_head.",
}


def _llama_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    state = {}
    for name, weight in model.state_dict().items():
        if ".attention.wqkv." in name:
            blocks = weight.view(config.num_key_value_heads, -1, size, *weight.shape[1:])
            parts = {"q_proj": blocks[:, :-2], "k_proj": blocks[:, -2:-1], "v_proj": blocks[:, -1:]}
            for part, block in parts.items():
                state[name.replace("attention.wqkv", f"self_attn.{part}")] = block.reshape(-1, *weight.shape[1:])
            continue
        for here, there in _NAMES.items():
            name = name.replace(here, there)
        state[name] = weight
    return state


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
