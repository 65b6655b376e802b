"""Writes the tables of the documentation that the code itself knows.

Usage: python tools/docs_tables.py formats

The table stands in a page between two comments, ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``; what lies between
them is replaced. A test holds the page against what this writes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def formats_table() -> str:
    """The row formats that come with xrlhf: their map function, what they teach and are, columns, licence."""
    from xrlhf.data import map_fns

    lines = ["| map function | teaches | rows of | columns | licence |", "|---|---|---|---|---|"]
    for info in map_fns.describe_formats():
        if info.name not in map_fns.__all__:
            continue
        columns = ", ".join(f"`{column.name}`" + ("?" if column.optional else "") for column in info.columns)
        cells = (f"`{info.name}`", info.kind, info.summary.rstrip("."), columns, info.licence.rstrip("."))
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


TABLES: dict[str, tuple[str, Callable[[], str]]] = {"formats": ("formats.md", formats_table)}
"""By name: the page below docs/ that holds the table, and what makes it."""


def with_table(page: str, name: str, table: str) -> str:
    """The text of a page with its table called ``name`` replaced."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"the page must hold {begin} and {end} once")
    return pattern.sub(lambda _: f"{begin}\n\n{table}\n{end}", page)


def main(arguments: list[str]) -> int:
    """Writes the tables that are named; 2 if there is none of that name."""
    unknown = [name for name in arguments if name not in TABLES]
    if unknown or not arguments:
        found = ", ".join(unknown) or "none"
        print(f"expected one or more of {', '.join(TABLES)}; found {found}", file=sys.stderr)
        return 2
    for name in arguments:
        file, make = TABLES[name]
        page = DOCS / file
        page.write_text(with_table(page.read_text(encoding="utf-8"), name, make()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
