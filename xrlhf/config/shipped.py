"""The recipes that come with xrlhf: where they lie, what they are called, and copies of them.

They lie in ``configs/`` of a clone, and in ``xrlhf/_configs/`` of an installed wheel. Files and folders whose name
begins with an underscore, ``_base_`` above all, hold what recipes inherit from and are no recipes. Nothing here
executes a recipe or imports anything heavy, so that listing them is immediate.
"""

from __future__ import annotations

import ast
import fnmatch
import os
from pathlib import Path

from xrlhf.config.suggest import nearest_clause
from xrlhf.errors import ConfigError

__all__ = ["SHIPPED_PREFIX", "find_recipe", "list_recipes", "recipe_summary", "shipped_dir"]

PACKAGE_DIR = Path(__file__).resolve().parents[1]
SHIPPED_PREFIX = "xrlhf::"
"""Before a path in ``_base_``: the path begins at the folder of shipped recipes."""


def shipped_dir() -> Path:
    """The folder of shipped recipes.

    Raises:
        ConfigError: The installation has none.
    """
    clone = PACKAGE_DIR.parent
    if (clone / "setup.py").is_file() and (clone / "configs").is_dir():
        return clone / "configs"
    installed = PACKAGE_DIR / "_configs"
    if installed.is_dir():
        return installed
    raise ConfigError(f"no shipped recipes at {installed}: this installation of xrlhf is incomplete; install it again")


def list_recipes(pattern: str | None = None) -> list[str]:
    """The names of the shipped recipes, sorted.

    Args:
        pattern: Only names that contain it, or that match it where it holds ``*``, ``?`` or ``[``; None for all.

    Returns:
        Paths below :func:`shipped_dir`, with ``/`` between folders and without ``.py``.
    """
    folder = shipped_dir()
    names = []
    for file in folder.rglob("*.py"):
        parts = file.relative_to(folder).with_suffix("").parts
        if not any(part.startswith(("_", ".")) for part in parts):
            names.append("/".join(parts))
    if pattern is not None and any(char in pattern for char in "*?["):
        names = [n for n in names if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(_stem(n), pattern)]
    elif pattern is not None:
        names = [n for n in names if pattern in n]
    return sorted(names)


def find_recipe(name_or_path: str | os.PathLike[str]) -> Path:
    """The recipe file that a command's argument means.

    Args:
        name_or_path: A file, or a shipped recipe's name with or without ``.py``, ``configs/`` and its folder.

    Raises:
        ConfigError: There is no such recipe (the message names the nearest), or several shipped ones have that name.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    wanted = path.as_posix().removeprefix("configs/").removesuffix(".py")
    names = list_recipes()
    found = [n for n in names if n == wanted] or [n for n in names if _stem(n) == wanted]
    if len(found) > 1:
        raise ConfigError(f"several shipped recipes are called {str(name_or_path)!r}: write one of {', '.join(found)}")
    if not found:
        near = nearest_clause(wanted, names) or nearest_clause(_stem(wanted), map(_stem, names))
        raise ConfigError(
            f"no recipe {str(name_or_path)!r}: neither a file nor a shipped recipe{near}; `xrlhf list-cfg` lists them"
        )
    return shipped_dir() / f"{found[0]}.py"


def recipe_summary(file: Path) -> str:
    """The first line of a recipe's docstring, read without executing it; empty where there is none."""
    try:
        docstring = ast.get_docstring(ast.parse(file.read_bytes(), filename=str(file)))
    except (OSError, SyntaxError, ValueError):
        return ""
    return docstring.partition("\n")[0].strip() if docstring else ""


def _stem(name: str) -> str:
    return name.rpartition("/")[2]
