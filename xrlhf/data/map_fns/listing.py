"""What formats there are: read from the registry and from the docstrings of the map functions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xrlhf.registry import MAP_FNS

__all__ = ["Column", "FormatInfo", "describe_format", "describe_formats"]

_COLUMN = re.compile(r"(?P<name>\S.*?) \((?P<kind>[^()]*)\): (?P<meaning>.*)")


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
class FormatInfo:
    """One row format.

    Args:
        name: Name of the map function that reads it.
        summary: One line.
        columns: Its columns, as far as the docstring lists them.
        licence: Of the public set it is named for; empty where none is given.
        options: Options of the map function and their defaults.
    """

    name: str
    summary: str
    columns: tuple[Column, ...]
    licence: str
    options: dict[str, Any]


def describe_formats() -> list[FormatInfo]:
    """Every registered map function in order of its name, the user's own included."""
    MAP_FNS.import_from_location()
    return [describe_format(name, function) for name, function in sorted(MAP_FNS.module_dict.items())]


def describe_format(name: str, function: Callable[..., Any]) -> FormatInfo:
    """What the docstring of a map function says: its first line, and its sections ``Columns:`` and ``Licence:``."""
    doc = inspect.getdoc(function) or ""
    parameters = inspect.signature(function).parameters.values()
    return FormatInfo(
        name=name,
        summary=doc.split("\n", 1)[0],
        columns=tuple(
            Column(**match.groupdict()) for entry in _section(doc, "Columns") if (match := _COLUMN.fullmatch(entry))
        ),
        licence=" ".join(_section(doc, "Licence")),
        options={option.name: option.default for option in parameters if option.kind is option.KEYWORD_ONLY},
    )


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
