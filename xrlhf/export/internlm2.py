"""InternLM2 reward models as the published ones are: with their code beside them, for ``AutoModel``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.errors import ModelError
from xrlhf.models.internlm2 import InternLM2ForRewardModel, configuration_internlm2, modeling_internlm2
from xrlhf.models.tokenizer import ending_id

__all__ = ["as_llama", "complete_internlm2", "with_architecture"]

_CODE = (configuration_internlm2, modeling_internlm2)
_IMPORT_HERE, _IMPORT_THERE = "from xrlhf.models.internlm2.", "from ."
"""The two files import one another by the package's name here, and as neighbours in an exported directory."""

_AUTO_MAP = {
    "AutoConfig": "configuration_internlm2.InternLM2Config",
    "AutoModel": "modeling_internlm2.InternLM2ForRewardModel",
}


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
    config = _read(folder / "config.json")
    _write(folder / "config.json", {**config, "auto_map": _AUTO_MAP, "reward_token_id": ending_id(tokenizer)})
    for module in _CODE:
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
        model: A reward model, adapters merged.
        name: Its own class or, for InternLM2, ``"LlamaForSequenceClassification"``; None for its own.

    Raises:
        ModelError: Another name.
    """
    own, llama = type(model).__name__, LlamaForSequenceClassification.__name__
    if name in (None, own):
        return model
    if isinstance(model, InternLM2ForRewardModel):
        if name == llama:
            return as_llama(model)
        own = f"{own} or {llama}"
    raise ModelError(f"architecture must be {own} for this model, got {name!r}")


def as_llama(model: InternLM2ForRewardModel) -> LlamaForSequenceClassification:
    """The same model in the layout of Llama, which loaders know without code of its own; the weights are copied."""
    config = model.config
    rope = {"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": float(config.rope_theta)}
    rope["rope_type"] = rope.pop("type", rope["rope_type"])
    llama = LlamaForSequenceClassification(
        LlamaConfig(
            **{name: getattr(config, name) for name in _SHARED} | {"num_labels": model.v_head.out_features},
            attention_bias=config.bias,
            rope_parameters=rope,
        )
    )
    with torch.no_grad():
        llama.load_state_dict(_llama_state(model))
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
}


def _llama_state(model: InternLM2ForRewardModel) -> dict[str, torch.Tensor]:
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
