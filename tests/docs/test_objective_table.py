"""The tables of objectives say what the docstrings say."""

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


@pytest.mark.parametrize("page", TOOL.pages(), ids=lambda page: page.name)
def test_the_page_holds_what_the_tool_writes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert TOOL.with_table(page, text, TOOL.pages()[page]) == text, "run: python tools/objective_table.py --write"


@pytest.mark.parametrize("loss", TOOL.objectives(), ids=lambda loss: loss.__name__)
def test_every_objective_says_all_there_is_to_say(loss: type[nn.Module]) -> None:
    name, formula, data, when, source, test = TOOL.row(loss)
    assert all((name, formula, data, when, source))
    assert (ROOT / test.strip("`")).is_file()


def test_all_losses_are_there_penalties_last() -> None:
    rewards, policies = ([loss.__name__ for loss in losses] for losses in TOOL.pages().values())
    assert rewards[-3:] == ["CenteringPenalty", "L2Penalty", "LogBarrierPenalty"]
    assert {"RankingLoss", "PlackettLuceLoss", "RegressionLoss", "BinaryLoss", "DavidsonLoss"} <= set(rewards)
    assert {f"{name}Loss" for name in ("DPO", "IPO", "SimPO", "ORPO", "CPO", "KTO", "APOZero")} <= set(policies)
    assert sorted(rewards + policies) == sorted(loss.__name__ for loss in TOOL.objectives())


def test_sections_and_formulas_of_a_docstring() -> None:
    doc = (
        "Says it.\n\nFor x::\n\n    a = b\n    c  = |d|\n\nData:\n    Some ``kind``\n    of it.\n\nWhen:\n    Always.\n"
    )
    assert TOOL.formula(doc) == ["a = b", "c = |d|"]
    assert TOOL.section(doc, "Data") == "Some `kind` of it."
    assert TOOL.section(doc, "Reference") == ""


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(SystemExit, match="needs the lines"):
        TOOL.with_table(ROOT / "docs" / "objectives.md", "# Objectives\n", [])


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert TOOL.main([]) == 0
    assert capsys.readouterr().out.count("| objective | formula |") == 2
    assert TOOL.main(["--what"]) == 2
