"""A recipe written out as a Python file of literals."""

from __future__ import annotations

import keyword
import math
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xrlhf.config.literals import to_literals
from xrlhf.config.secrets import mask_secrets
from xrlhf.errors import ConfigError
from xrlhf.files import replacing

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["dump_recipe", "recipe_text"]

_WIDTH = 120
_INDENT = "    "


def recipe_text(cfg: Config | Mapping[str, Any]) -> str:
    """A recipe as Python source that :func:`xrlhf.config.load_recipe` reads back equal, but for masked secrets.

    Args:
        cfg: What :func:`xrlhf.config.load_recipe` returned, or a mapping. Classes and functions are written as dotted
            names.

    Returns:
        One assignment a line or block, names and keys in their order; secrets are ``"***"``
        (see :mod:`xrlhf.config.secrets`).

    Raises:
        ConfigError: A top-level name is not one that a recipe can assign, or a value cannot be written as a literal.
    """
    values = dict(cfg.items())
    for name in values:
        if not isinstance(name, str) or not _is_name(name) or name.startswith("_") or name in ("dict", "float"):
            raise ConfigError(f"{name!r} cannot be a top-level name of a recipe: choose a plain word without leading _")
    masked = mask_secrets({name: to_literals(value, name) for name, value in values.items()})
    return "".join(f"{name} = {_formatted(value, len(name) + 3, '')}\n" for name, value in masked.items())


def dump_recipe(cfg: Config | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes :func:`recipe_text` to a file: whole or not at all.

    Args:
        cfg: The recipe.
        path: A ``.py`` file; its folder is made where it is missing, a file of that name is replaced.

    Raises:
        ConfigError: As :func:`recipe_text`, or the file cannot be written.
    """
    target = Path(path)
    if target.suffix != ".py":
        raise ConfigError(f"{target}: a recipe is a Python file; its name must end in .py")
    text = recipe_text(cfg)
    try:
        with replacing(target) as aside:
            aside.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror}") from error


def _formatted(value: Any, column: int, indent: str) -> str:
    """``value`` as source: on one line where that fits from ``column`` on, else one item a line."""
    line = _inline(value)
    if len(line) + column <= _WIDTH or not isinstance(value, (dict, list, tuple)) or not value:
        return line
    inner = indent + _INDENT
    if isinstance(value, dict):
        opening, closing, between = ("dict(", ")", "=") if _takes_keywords(value) else ("{", "}", ": ")
        items = []
        for key, item in value.items():
            head = inner + (key if between == "=" else _inline(key)) + between
            items.append(head + _formatted(item, len(head) + 1, inner))
    else:
        opening, closing = "[]" if isinstance(value, list) else "()"
        items = [inner + _formatted(item, len(inner) + 1, inner) for item in value]
    return "\n".join([opening, *(f"{item}," for item in items), indent + closing])


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        if _takes_keywords(value):
            return f"dict({', '.join(f'{key}={_inline(item)}' for key, item in value.items())})"
        return "{" + ", ".join(f"{_inline(key)}: {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_inline, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    text = repr(value)
    # repr quotes with ' unless the string holds a '; without either kind inside, " reads like the rest of the project.
    return f'"{text[1:-1]}"' if isinstance(value, str) and text[0] == "'" and '"' not in value else text


def _takes_keywords(value: dict[Any, Any]) -> bool:
    return bool(value) and all(isinstance(key, str) and _is_name(key) for key in value)


def _is_name(key: str) -> bool:
    """True where ``key`` may stand for itself as a name in source (Python reads names in their NFKC form)."""
    is_plain = key.isidentifier() and unicodedata.normalize("NFKC", key) == key
    return is_plain and not keyword.iskeyword(key) and key != "__debug__"
