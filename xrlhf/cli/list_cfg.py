"""``xrlhf list-cfg``."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from xrlhf.config.shipped import list_recipes, recipe_summary, shipped_dir
from xrlhf.config.suggest import nearest_clause
from xrlhf.errors import ConfigError

__all__ = ["list_cfg"]


def list_cfg(
    pattern: Annotated[
        Optional[str],
        typer.Option("--pattern", "-p", help="Only names that contain this, or match it where it holds * or ?."),
    ] = None,
) -> None:
    """List the shipped recipes, one a line with what each is for.

    Example: xrlhf list-cfg -p reward
    """
    names = list_recipes(pattern)
    if not names and pattern is not None:
        raise ConfigError(f"no shipped recipe matches {pattern!r}{nearest_clause(pattern, list_recipes())}")
    folder = shipped_dir()
    width = max(map(len, names), default=0)
    for name in names:
        typer.echo(f"{name:<{width}}  {recipe_summary(folder / f'{name}.py')}".rstrip())
