"""Templates turned into pages, with one style for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["count", "number", "render", "signed"]

_STYLE = Path(__file__).with_name("style.css")


def render(template: Path, *, filters: Mapping[str, Callable[..., str]] | None = None, **values: Any) -> str:
    """A page as text; everything that comes from data is escaped.

    Args:
        template: A Jinja file; it writes ``{{ style }}`` where the style belongs.
        filters: Beside :func:`number`, :func:`signed` and :func:`count`.
        values: What the template reads.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "signed": signed, "count": count, **(filters or {})}
    style = Markup(_STYLE.read_text(encoding="utf-8"))
    return environment.get_template(template.name).render(style=style, **values)


def number(value: float | None, digits: int = 4) -> str:
    """A number in a table; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 4) -> str:
    """A difference, with its sign."""
    return "–" if value is None else f"{value:+.{digits}f}"


def count(value: int | None) -> str:
    """A count with thousands parted."""
    return "–" if value is None else f"{value:,}"
