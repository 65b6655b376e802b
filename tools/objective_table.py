"""Writes the tables of objectives in docs/objectives.md and docs/policy-losses.md from the docstrings of the losses.

python tools/objective_table.py            prints the tables
python tools/objective_table.py --write    puts each into its page
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from torch import nn

from xrlhf.registry import LOSSES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
POLICY = "xrlhf.losses.policy."
OF_DRAWN_ANSWERS = ("xrlhf.losses.policy_gradient", "xrlhf.losses.value")
"""What reinforcement learning learns by, which docs/ppo.md explains together."""
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
    *folders, module = loss.__module__.split(".")[1:]
    return [
        f"`{loss.__name__}`",
        "<br>".join(f"`{line}`" for line in formula(doc)),
        section(doc, "Data"),
        section(doc, "When"),
        section(doc, "Reference"),
        f"`tests/{'/'.join(folders)}/test_{module}.py`",
    ]


def objectives() -> list[type[nn.Module]]:
    """Every registered loss of the package, penalties last, each kind by name."""
    LOSSES.import_from_location()
    own = [
        loss
        for loss in LOSSES.module_dict.values()
        if loss.__module__.startswith("xrlhf.") and loss.__module__ not in OF_DRAWN_ANSWERS
    ]
    return sorted(own, key=lambda loss: (loss.__module__.endswith(".penalties"), loss.__name__))


def pages() -> dict[Path, list[type[nn.Module]]]:
    """The pages with a table, and the objectives of each: those of reward models, and those of policies."""
    policy = [loss for loss in objectives() if loss.__module__.startswith(POLICY)]
    reward = [loss for loss in objectives() if loss not in policy]
    return {DOCS / "objectives.md": reward, DOCS / "policy-losses.md": policy}


def table(losses: list[type[nn.Module]]) -> str:
    """A table in Markdown, a row for each loss."""
    rows = [list(_COLUMNS), ["---"] * len(_COLUMNS)]
    rows += [[cell.replace("|", "\\|") for cell in row(loss)] for loss in losses]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def with_table(page: Path, text: str, losses: list[type[nn.Module]]) -> str:
    """The text of a page with a table between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise SystemExit(f"{page} needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{table(losses)}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Print or write the tables."""
    if arguments not in ([], ["--write"]):
        print(__doc__, file=sys.stderr)
        return 2
    for page, losses in pages().items():
        if arguments:
            page.write_text(with_table(page, page.read_text(encoding="utf-8"), losses), encoding="utf-8")
        else:
            print(f"{table(losses)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
