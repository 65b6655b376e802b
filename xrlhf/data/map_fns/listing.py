"""What formats there are: read from the registry and from the docstrings of the map functions."""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from xrlhf.config.suggest import nearest_clause
from xrlhf.errors import ConfigError
from xrlhf.registry import MAP_FNS

__all__ = ["Column", "FormatInfo", "FormatOption", "describe_format", "describe_formats", "find_format"]

_COLUMN = re.compile(r"(?P<name>\S.*?) \((?P<kind>[^()]*)\): (?P<meaning>.*)")
_ARGUMENT = re.compile(r"(?P<name>\w+): (?P<meaning>.*)")
_SUFFIX = "_map_fn"
_PACKAGE = "xrlhf.data.map_fns"
_PREFERENCES = "preferences"


@dataclass(frozen=True)
class Column:
    """One column of a format.

    Args:
        name: As rows have it.
        kind: What it holds, in a few words.
        meaning: What it says.
    """

    name: str
    kind: str
    meaning: str

    @property
    def optional(self) -> bool:
        """Whether a row may lack it."""
        return "optional" in self.kind


@dataclass(frozen=True)
class FormatOption:
    """One option of a map function.

    Args:
        name: Its name.
        required: Whether the caller must give it.
        default: What it is where it is not given; None where it must be.
        choices: The values it may have, where these are few.
        meaning: What it does, as far as the docstring says so.
    """

    name: str
    required: bool = False
    default: Any = None
    choices: tuple[Any, ...] = ()
    meaning: str = ""


@dataclass(frozen=True)
class FormatInfo:
    """One row format.

    Args:
        name: Name of the map function that reads it.
        summary: One line.
        columns: Its columns, as far as the docstring lists them; those of answers in the order of their scores.
        licence: Of the public set it is named for; empty where none is given.
        options: Options of the map function.
        traps: What goes wrong easily.
        imports: The lines of a recipe that import what ``recipe`` names.
        recipe: The item of a recipe's ``sources`` that chooses it.
        kind: What the rows teach: ``"preferences"``; ``"SFT"`` where each is one conversation to learn from;
            ``"rated answers"``.
    """

    name: str
    summary: str
    columns: tuple[Column, ...]
    licence: str
    options: tuple[FormatOption, ...]
    traps: tuple[str, ...]
    imports: tuple[str, ...]
    recipe: str
    kind: str = _PREFERENCES


def describe_formats(pattern: str | None = None) -> list[FormatInfo]:
    """Every registered map function in order of its name, the user's own included.

    Args:
        pattern: Only names that contain it, or that match it where it holds ``*``, ``?`` or ``[``; None for all.
    """
    MAP_FNS.import_from_location()
    names = sorted(MAP_FNS.module_dict)
    if pattern is not None and any(char in pattern for char in "*?["):
        names = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    elif pattern is not None:
        names = [name for name in names if pattern in name]
    return [describe_format(name, MAP_FNS.module_dict[name]) for name in names]


def find_format(name: str) -> FormatInfo:
    """The format of that name, which may lack ``_map_fn`` at its end.

    Raises:
        ConfigError: There is none; the message names the nearest.
    """
    formats = {info.name: info for info in describe_formats()}
    for candidate in (name, name + _SUFFIX):
        if candidate in formats:
            return formats[candidate]
    near = nearest_clause(name, formats) or nearest_clause(name, [known.removesuffix(_SUFFIX) for known in formats])
    raise ConfigError(f"no format is called {name!r}{near}; `xrlhf list-dataset-formats` lists them")


def describe_format(name: str, function: Callable[..., Any]) -> FormatInfo:
    """What the signature of a map function says, and its docstring: the first line and the sections.

    The sections are ``Columns:``, ``Traps:``, ``Licence:``, ``Args:``, where the rows hold no preferences ``Kind:``,
    and where choosing the format takes more than its name and its required options ``Recipe:`` (lines of imports, and
    the item of ``sources`` last).
    """
    doc = inspect.getdoc(function) or ""
    module = _PACKAGE if function.__module__.startswith(f"{_PACKAGE}.") else function.__module__
    options = _options_of(function, doc)
    *imports, recipe = _section(doc, "Recipe") or [_recipe_line(name, options)]
    return FormatInfo(
        name=name,
        summary=doc.split("\n", 1)[0],
        columns=tuple(
            Column(**match.groupdict()) for entry in _section(doc, "Columns") if (match := _COLUMN.fullmatch(entry))
        ),
        licence=" ".join(_section(doc, "Licence")),
        options=options,
        traps=tuple(entry.removeprefix("- ") for entry in _section(doc, "Traps")),
        imports=(f"from {module} import {name}", *imports),
        recipe=recipe,
        kind=" ".join(_section(doc, "Kind")) or _PREFERENCES,
    )


def _options_of(function: Callable[..., Any], doc: str) -> tuple[FormatOption, ...]:
    arguments = filter(None, map(_ARGUMENT.fullmatch, _section(doc, "Args")))
    meanings = {match["name"]: match["meaning"] for match in arguments}
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        # Annotations of a user's function may name what only type checkers import.
        hints = {}
    return tuple(
        FormatOption(
            name=option.name,
            required=option.default is option.empty,
            default=None if option.default is option.empty else option.default,
            choices=get_args(hint) if get_origin(hint := hints.get(option.name)) is Literal else (),
            meaning=meanings.get(option.name, ""),
        )
        for option in inspect.signature(function).parameters.values()
        if option.kind is option.KEYWORD_ONLY
    )


def _recipe_line(name: str, options: tuple[FormatOption, ...]) -> str:
    required = [
        f"{option.name}={option.choices[0]!r}" if option.choices else f"{option.name}=..."
        for option in options
        if option.required
    ]
    chosen = f"dict(type={name}, {', '.join(required)})" if required else name
    return f'dict(source="FILE", map_fn={chosen})'.replace("'", '"')


def _section(doc: str, title: str) -> list[str]:
    """The entries of a section, each on one line."""
    entries: list[str] = []
    inside = False
    for line in doc.splitlines():
        if not line.startswith(" "):
            inside = line == f"{title}:" or (inside and not line)
        elif inside and line.strip():
            if len(line) - len(line.lstrip()) > 4 and entries:
                entries[-1] += " " + line.strip()
            else:
                entries.append(line.strip())
    return entries
