"""The table of objectives says what the docstrings say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("objective_table", ROOT / "tools" / "objective_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = load()


def test_the_page_holds_what_the_tool_writes() -> None:
    page = TOOL.PAGE.read_text(encoding="utf-8")
    assert TOOL.with_table(page) == page, "run: python tools/objective_table.py --write"


@pytest.mark.parametrize("loss", TOOL.objectives(), ids=lambda loss: loss.__name__)
def test_every_objective_says_all_there_is_to_say(loss: type[nn.Module]) -> None:
    name, formula, data, when, source, test = TOOL.row(loss)
    assert all((name, formula, data, when, source))
    assert (ROOT / test.strip("`")).is_file()


def test_all_losses_are_there_penalties_last() -> None:
    names = [loss.__name__ for loss in TOOL.objectives()]
    assert names[-3:] == ["CenteringPenalty", "L2Penalty", "LogBarrierPenalty"]
    assert {"RankingLoss", "PlackettLuceLoss", "RegressionLoss", "BinaryLoss", "DavidsonLoss"} <= set(names)


def test_sections_and_formulas_of_a_docstring() -> None:
    doc = (
        "Says it.\n\nFor x::\n\n    a = b\n    c  = |d|\n\nData:\n    Some ``kind``\n    of it.\n\nWhen:\n    Always.\n"
    )
    assert TOOL.formula(doc) == ["a = b", "c = |d|"]
    assert TOOL.section(doc, "Data") == "Some `kind` of it."
    assert TOOL.section(doc, "Reference") == ""


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(SystemExit, match="needs the lines"):
        TOOL.with_table("# Objectives\n")


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert TOOL.main([]) == 0
    assert capsys.readouterr().out.startswith("| objective | formula |")
    assert TOOL.main(["--what"]) == 2
