"""The policy's weights in a folder, for servers that draw answers with a copy of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from xrlhf.errors import ConfigError
from xrlhf.models.policy_model import PolicyModel

__all__ = ["write_policy_folder"]

_PREFIX = "backbone."


def write_policy_folder(strategy: Any, folder: Path, *, adapter: bool, tokenizer: Any = None) -> None:
    """Write the policy as it is now, whole, under any strategy; every process takes part.

    Args:
        strategy: The strategy, prepared.
        folder: What was there before goes; it appears when it is whole.
        adapter: Write the adapters alone, not a whole model.
        tokenizer: Written beside the weights, if given.

    Raises:
        ConfigError: The policy has adapters and a whole model is asked for, or the other way round.
    """
    module: PolicyModel = strategy.module
    if module.uses_lora != adapter:
        has, wanted = ("adapters", "adapter") if module.uses_lora else ("no adapters", "weights")
        raise ConfigError(f"the policy trains {has}: set update={wanted!r} of the rollouts")
    names = {name for name in module.state_dict() if name.startswith(_PREFIX)}
    weights = strategy.full_weights(names)

    def write() -> None:
        state = {name.removeprefix(_PREFIX): value for name, value in weights.items()}
        aside = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        model: Any = module.backbone
        model.save_pretrained(aside, state_dict=state)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)

    strategy.on_first_rank(write)
