"""LoRA adapters on a reward backbone, with the score head always trained in full and always saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from xrlhf.errors import ModelError

__all__ = ["add_lora"]


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
    kept = list(chosen.pop("modules_to_save", None) or [])
    chosen.pop("task_type", None)
    if head_name not in kept:
        kept.append(head_name)
    try:
        config = LoraConfig(task_type=TaskType.SEQ_CLS, modules_to_save=kept, **chosen)
        wrapped = get_peft_model(backbone, config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"lora={dict(options)} does not fit {type(backbone).__name__}: {error}") from error
    return wrapped
