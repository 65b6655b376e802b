"""Backbones: Hugging Face models with one scalar score, from a directory or from a config."""

from __future__ import annotations

import logging
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.errors import ModelError
from xrlhf.registry import MODELS

__all__ = ["backbone_from_config", "backbone_from_pretrained", "fit_embeddings", "score_head", "torch_dtype"]

logger = logging.getLogger("xrlhf")

_HEAD_NAMES = ("score", "classifier")


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """``"float32"``, ``"bfloat16"`` or ``"float16"`` as a dtype.

    Raises:
        ModelError: Another name.
    """
    if isinstance(name, torch.dtype):
        return name
    if name not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"dtype must be 'float32', 'bfloat16' or 'float16', got {name!r}")
    return getattr(torch, name)  # type: ignore[no-any-return]


@MODELS.register_module()
def backbone_from_pretrained(
    path: str,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    head_init: str = "zero",
    require_head: bool = False,
) -> PreTrainedModel:
    """A causal or sequence-classification model as ``...ForSequenceClassification`` with one label.

    A score head found in the checkpoint is kept; otherwise a new one is made.

    Args:
        path: A Hugging Face directory or a hub name.
        dtype: Type the weights are held in. The default, float32 under autocast, trains most exactly.
        revision: Commit, tag or branch on the hub.
        trust_remote_code: Run the repository's own model code. Only for sources you trust.
        head_init: ``"zero"`` starts every score at 0; ``"normal"`` draws from N(0, 1/(hidden+1)), the usual start of
            reward heads (Stiennon et al. 2020, arXiv 2009.01325, appendix).
        require_head: Refuse a checkpoint without a trained head, in place of making a new one.

    Raises:
        ModelError: Nothing loadable, an architecture without a score head, a head of another size, weights missing.
    """
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=1,
            dtype=torch_dtype(dtype),
            revision=revision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"no model could be loaded from {path!r}: {_first_line(error)}") from error
    head_name, head = score_head(model)
    mismatched = [str(item[0] if isinstance(item, tuple) else item) for item in info.get("mismatched_keys", ())]
    missing = {str(key) for key in info["missing_keys"]}
    others = sorted(key for key in {*missing, *mismatched} if not key.startswith(head_name))
    if others:
        raise ModelError(f"{path!r} lacks {len(others)} weights of {type(model).__name__}, such as {others[0]!r}")
    if mismatched:
        raise ModelError(f"{path!r} has a {head_name} head that does not give one score: export it with num_labels=1")
    if any(key.startswith(head_name) for key in missing):
        if require_head:
            raise ModelError(f"{path!r} holds no {head_name} head: it is a language model, not a reward model")
        _init_head(head, head_init)
    head.float()
    return model


@MODELS.register_module()
def backbone_from_config(
    model_type: str, *, dtype: str = "float32", head_init: str = "zero", **config: Any
) -> PreTrainedModel:
    """A model with random weights, from its config alone: no download.

    Args:
        model_type: A type that ``transformers`` knows, such as ``"llama"``.
        dtype: Type the weights are held in.
        head_init: As in :func:`backbone_from_pretrained`.
        **config: Fields of that type's config, such as ``hidden_size``.

    Raises:
        ModelError: An unknown type, field or value.
    """
    try:
        built = AutoConfig.for_model(model_type, num_labels=1, **config)
        model = AutoModelForSequenceClassification.from_config(built, dtype=torch_dtype(dtype))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"no {model_type!r} model could be made from its config: {_first_line(error)}") from error
    _, head = score_head(model)
    _init_head(head, head_init)
    head.float()
    return model


def score_head(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """Name and module of the linear layer that turns a hidden state into one score.

    Raises:
        ModelError: The architecture has none.
    """
    for name in _HEAD_NAMES:
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear) and head.out_features == 1:
            return name, head
    raise ModelError(
        f"{type(model).__name__} has no linear score head named {' or '.join(_HEAD_NAMES)} with one output, "
        "so it cannot serve as a reward model"
    )


def _init_head(head: nn.Linear, how: str) -> None:
    if how not in ("zero", "normal"):
        raise ModelError(f"head_init must be 'zero' or 'normal', got {how!r}")
    with torch.no_grad():
        if how == "zero":
            head.weight.zero_()
        else:
            head.weight.normal_(std=(head.in_features + 1) ** -0.5)
        if head.bias is not None:
            head.bias.zero_()


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model a row for every token the project itself added, and the tokenizer's special ids.

    Raises:
        ModelError: The tokenizer is larger than the model for any other reason: they do not belong together.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    new_tokens = list(getattr(tokenizer, "xrlhf_new_tokens", []))
    largest = max(tokenizer.get_vocab().values())
    known = largest - len(new_tokens) if new_tokens else largest
    if known >= rows:
        raise ModelError(
            f"the tokenizer has ids up to {known} but the model embeds only {rows} tokens: "
            "use the tokenizer that belongs to this model"
        )
    if largest >= rows:
        model.resize_token_embeddings(largest + 1, mean_resizing=False)
        with torch.no_grad():
            weight = model.get_input_embeddings().weight
            weight[rows:] = weight[:rows].mean(dim=0)
        logger.info("grew the embeddings from %d to %d rows for %s", rows, largest + 1, ", ".join(new_tokens))
    model.config.pad_token_id = tokenizer.pad_token_id
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name) is not None:
            setattr(model.config, name, getattr(tokenizer, name))


def _first_line(error: Exception) -> str:
    lines = [line for line in re.split(r"\n+", str(error).strip()) if line]
    return lines[0] if lines else type(error).__name__
