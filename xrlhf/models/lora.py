"""LoRA adapters on a reward backbone, with the score head always trained in full and always saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from xrlhf.errors import ModelError, error_line

__all__ = ["add_lora", "base_is_untouched"]

_KEEPS_BASE = ("gaussian", "eva", "orthogonal")


def add_lora(backbone: PreTrainedModel, head_name: str, options: Mapping[str, Any]) -> PeftModel:
    """Wrap ``backbone`` in adapters.

    The head is put into ``modules_to_save`` whatever the options say: left to its defaults, peft would freeze or drop
    a freshly made score head under several task types and target settings.

    Args:
        backbone: A ``...ForSequenceClassification`` model.
        head_name: Name of its score head.
        options: Options of :class:`peft.LoraConfig`; ``target_modules`` defaults to ``"all-linear"``.

    Raises:
        ModelError: An option peft refuses.
    """
    chosen = {"target_modules": "all-linear", **{key: value for key, value in options.items() if key != "type"}}
    kept = chosen.pop("modules_to_save", None) or []
    kept = [kept] if isinstance(kept, str) else list(kept)
    chosen.pop("task_type", None)
    if head_name not in kept:
        kept.append(head_name)
    try:
        config = LoraConfig(task_type=TaskType.SEQ_CLS, modules_to_save=kept, **chosen)
        wrapped = get_peft_model(backbone, config)
    except (TypeError, ValueError, KeyError, NotImplementedError, ImportError) as error:
        raise ModelError(f"lora={dict(options)} does not fit {type(backbone).__name__}: {error_line(error)}") from error
    return wrapped


def base_is_untouched(model: PeftModel) -> bool:
    """Whether the base under the adapters holds the weights it was loaded with.

    Some initialisations (PiSSA, OLoRA, LoftQ and their kind) move a part of the base weights into the adapters, so
    that neither is of use without the other.
    """
    how = [getattr(config, "init_lora_weights", True) for config in model.peft_config.values()]
    return all(isinstance(item, bool) or item in _KEEPS_BASE for item in how)
