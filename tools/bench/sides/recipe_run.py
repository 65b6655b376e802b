"""A recipe of these benchmarks, trained through the ordinary command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xrlhf.cli.main import main

__all__ = ["train_recipe"]

_RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def train_recipe(name: str, device: str, options: Mapping[str, Any]) -> None:
    """Train it.

    Args:
        name: Of the recipe.
        device: Where.
        options: Its settings in place of those in the file.

    Raises:
        SystemExit: Training failed.
    """
    arguments = ["train", str(_RECIPES / f"{name}.py"), "--device", device, "--cfg-options"]
    status = main([*arguments, *(f"{key}={value}" for key, value in options.items())])
    if status:
        raise SystemExit(status)
