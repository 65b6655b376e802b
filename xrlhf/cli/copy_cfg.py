"""``xrlhf copy-cfg``."""

from __future__ import annotations

from typing import Annotated

import typer

from xrlhf.config.copying import copy_recipe

__all__ = ["copy_cfg"]


def copy_cfg(
    name: Annotated[str, typer.Argument(help="A shipped recipe, as `xrlhf list-cfg` names it, or a recipe's file.")],
    directory: Annotated[str, typer.Argument(help="Where the copy goes; made where it is missing.")] = ".",
) -> None:
    """Copy a recipe to NAME_copy.py, to change it and train with it.

    Example: xrlhf copy-cfg NAME my_recipes
    """
    copy = copy_recipe(name, directory)
    typer.echo(f"wrote {copy}")
    typer.echo(f"run it with: xrlhf train {copy}")
