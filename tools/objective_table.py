"""Writes the table of objectives in docs/objectives.md from the docstrings of the losses.

python tools/objective_table.py            prints the table
python tools/objective_table.py --write    puts it into docs/objectives.md
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from torch import nn

from xrlhf.registry import LOSSES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "objectives.md"
BEGIN, END = "<!-- table of objectives: written by tools/objective_table.py -->", "<!-- end of the table -->"
_COLUMNS = ("objective", "formula", "data it needs", "when to choose it", "source", "test")


def section(doc: str, title: str) -> str:
    """The text of a section of a docstring on one line; empty where there is none."""
    lines: list[str] = []
    inside = False
    for line in doc.splitlines():
        if line == f"{title}:":
            inside = True
        elif inside and line and not line.startswith(" "):
            break
        elif inside:
            lines.append(line.strip())
    return " ".join(" ".join(lines).split()).replace("``", "`")


def formula(doc: str) -> list[str]:
    """The lines of the first literal block of a docstring."""
    lines: list[str] = []
    inside = False
    for line in doc.splitlines():
        if line.endswith("::"):
            inside = True
        elif inside and line and not line.startswith(" "):
            break
        elif inside and line.strip():
            lines.append(" ".join(line.split()))
    return lines


def row(loss: type[nn.Module]) -> list[str]:
    """The cells of one objective."""
    doc = inspect.getdoc(loss) or ""
    module = loss.__module__.rpartition(".")[2]
    return [
        f"`{loss.__name__}`",
        "<br>".join(f"`{line}`" for line in formula(doc)),
        section(doc, "Data"),
        section(doc, "When"),
        section(doc, "Reference"),
        f"`tests/losses/test_{module}.py`",
    ]


def objectives() -> list[type[nn.Module]]:
    """Every registered loss of the package, penalties last, each kind by name."""
    LOSSES.import_from_location()
    own = [loss for loss in LOSSES.module_dict.values() if loss.__module__.startswith("xrlhf.")]
    return sorted(own, key=lambda loss: (loss.__module__.endswith(".penalties"), loss.__name__))


def table() -> str:
    """The whole table in Markdown."""
    rows = [list(_COLUMNS), ["---"] * len(_COLUMNS)]
    rows += [[cell.replace("|", "\\|") for cell in row(loss)] for loss in objectives()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def with_table(text: str) -> str:
    """A page with the table between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise SystemExit(f"{PAGE} needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Print or write the table."""
    if arguments not in ([], ["--write"]):
        print(__doc__, file=sys.stderr)
        return 2
    if not arguments:
        print(table())
    else:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
