"""``xrlhf list-dataset-formats``."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from xrlhf.config.suggest import nearest_clause
from xrlhf.errors import ConfigError

if TYPE_CHECKING:
    from xrlhf.data.map_fns import FormatInfo

__all__ = ["list_dataset_formats"]

_WIDTH = 100


def list_dataset_formats(
    name: Annotated[
        Optional[str],
        typer.Argument(metavar="NAME", help="A format to describe, with or without _map_fn.", show_default=False),
    ] = None,
    pattern: Annotated[
        Optional[str],
        typer.Option("--pattern", "-p", help="Only names that contain this, or match it where it holds * or ?."),
    ] = None,
) -> None:
    """List the row formats, one a line, or describe one: columns, traps, options, licence, and how to choose it.

    Beside its name stands what a format teaches: preferences, SFT (conversations or texts to learn from), or rated
    answers.

    Example: xrlhf list-dataset-formats shp
    """
    from xrlhf.data.map_fns import describe_formats, find_format

    if name is not None:
        if pattern is not None:
            raise ConfigError("a format's name or --pattern, not both")
        for line in _description(find_format(name)):
            typer.echo(line)
        return
    formats = describe_formats(pattern)
    if not formats and pattern is not None:
        known = [info.name for info in describe_formats()]
        raise ConfigError(f"no format matches {pattern!r}{nearest_clause(pattern, known)}")
    width = max(len(info.name) for info in formats)
    kind_width = max(len(info.kind) for info in formats)
    for info in formats:
        typer.echo(f"{info.name:<{width}}  {info.kind:<{kind_width}}  {info.summary}".rstrip())


def _description(info: FormatInfo) -> list[str]:
    lines = [info.name, *_wrapped(info.summary, "  "), "", "teaches", f"  {info.kind}"]
    lines += ["", "columns"]
    for column in info.columns:
        lines += _wrapped(f"{column.name} ({column.kind}): {column.meaning}", "  ", "      ")
    if info.traps:
        lines += ["", "traps"]
        for trap in info.traps:
            lines += _wrapped(f"- {trap}", "  ", "    ")
    if info.options:
        lines += ["", "options"]
        for option in info.options:
            value = " (required)" if option.required else f" = {option.default!r}"
            meaning = f": {option.meaning}" if option.meaning else ""
            lines += _wrapped(f"{option.name}{value}{meaning}", "  ", "      ")
    if info.licence:
        lines += ["", "licence", *_wrapped(info.licence, "  ")]
    return [*lines, "", "in a recipe", *(f"  {line}" for line in info.imports), f"  sources = [{info.recipe}]"]


def _wrapped(text: str, first: str, later: str | None = None) -> list[str]:
    return textwrap.wrap(
        text.replace("``", ""),
        _WIDTH,
        initial_indent=first,
        subsequent_indent=first if later is None else later,
        break_long_words=False,
        break_on_hyphens=False,
    )
