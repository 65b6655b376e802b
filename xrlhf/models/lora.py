"""LoRA adapters on a transformers model; a score head is always trained in full and always saved."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from xrlhf.errors import ModelError, error_line
from xrlhf.models.embeddings import embedding_name
from xrlhf.models.quantised import is_quantised

__all__ = ["add_lora", "base_is_untouched", "keeps_base"]

logger = logging.getLogger("xrlhf")

_KEEPS_BASE = ("gaussian", "eva", "orthogonal")


def add_lora(
    backbone: PreTrainedModel,
    kept_layers: Sequence[str],
    options: Mapping[str, Any],
    task: TaskType,
    new_token_ids: Sequence[int] = (),
) -> PeftModel:
    """Wrap ``backbone`` in adapters.

    A score head is put into ``modules_to_save`` whatever the options say: by its defaults, peft would freeze or drop
    a freshly made score head under several task types and target settings. For the same reason the rows of new tokens
    join ``trainable_token_indices``: nobody has trained them before.

    Args:
        backbone: A transformers model.
        kept_layers: Names of layers to train and save in full: a reward model's score head.
        options: Options of :class:`peft.LoraConfig`; ``target_modules`` defaults to ``"all-linear"``.
        task: ``SEQ_CLS`` for reward models, ``CAUSAL_LM`` for language models.
        new_token_ids: Tokens that the project itself added to the vocabulary and that are read.

    Raises:
        ModelError: An option peft refuses, or one that would take a part out of a quantised base.
    """
    chosen = {"target_modules": "all-linear", **{key: value for key, value in options.items() if key != "type"}}
    kept = chosen.pop("modules_to_save", None) or []
    kept = [kept] if isinstance(kept, str) else list(kept)
    chosen.pop("task_type", None)
    kept += [name for name in kept_layers if name not in kept]
    if new_token_ids:
        _train_rows(backbone, chosen, kept, new_token_ids)
    try:
        config = LoraConfig(task_type=task, modules_to_save=kept or None, **chosen)
        if is_quantised(backbone) and not keeps_base(config):
            raise ValueError(
                f"init_lora_weights={config.init_lora_weights!r} moves a part of the base into the adapters, which a "
                "quantised base cannot give"
            )
        if config.use_dora and getattr(backbone, "is_loaded_in_8bit", False) and backbone.device.type == "cpu":
            # bitsandbytes 0.50 loses the scales of 8-bit weights there when DoRA reads them.
            raise ValueError("DoRA on a base in 8 bits does not work on the CPU: hold the base in 4 bits")
        wrapped = get_peft_model(backbone, config)
    except (TypeError, ValueError, KeyError, NotImplementedError, ImportError) as error:
        raise ModelError(f"lora={dict(options)} does not fit {type(backbone).__name__}: {error_line(error)}") from error
    for name, parameter in wrapped.named_parameters():
        # Unlike its other weights, peft leaves these in the type of the base.
        if "trainable_tokens_delta" in name:
            parameter.data = parameter.data.float()
    return wrapped


def _train_rows(
    backbone: PreTrainedModel, chosen: dict[str, Any], kept: Sequence[str], new_token_ids: Sequence[int]
) -> None:
    """Add the rows of new tokens to ``trainable_token_indices``, unless the embeddings are trained anyway."""
    name = embedding_name(backbone)
    targets = chosen["target_modules"]
    if isinstance(targets, str):
        adapted = targets != "all-linear" and re.fullmatch(targets, name) is not None
    else:
        adapted = _is_named(name, targets or ())
    if adapted or _is_named(name, kept):
        return
    if not isinstance(backbone.get_input_embeddings(), nn.Embedding):
        logger.warning(
            "the rows of %d new tokens stay as they were made: the embeddings of %s are no plain table",
            len(new_token_ids),
            type(backbone).__name__,
        )
        return
    asked = chosen.get("trainable_token_indices")
    if isinstance(asked, Mapping):
        short = next((key for key in asked if _is_named(name, [key])), name.rpartition(".")[2])
        chosen["trainable_token_indices"] = {**asked, short: sorted({*asked.get(short, ()), *new_token_ids})}
    else:
        chosen["trainable_token_indices"] = sorted({*(asked or ()), *new_token_ids})


def _is_named(name: str, endings: Sequence[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def keeps_base(config: PeftConfig) -> bool:
    """Whether adapters of this kind leave the weights of their base as they are."""
    how = getattr(config, "init_lora_weights", True)
    return isinstance(how, bool) or how in _KEEPS_BASE


def base_is_untouched(model: PeftModel) -> bool:
    """Whether the base under the adapters holds the weights it was loaded with.

    Some initialisations (PiSSA, OLoRA, LoftQ and their kind) move a part of the base weights into the adapters, so
    that neither is of use without the other.
    """
    return all(keeps_base(config) for config in model.peft_config.values())
