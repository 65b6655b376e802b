"""Tables in the documentation are what the code says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "tools" / "docs_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_tables"] = module
    spec.loader.exec_module(module)
    return module


def test_every_committed_table_is_what_the_tool_writes(tool: ModuleType) -> None:
    for name, (file, make) in tool.TABLES.items():
        page = (ROOT / "docs" / file).read_text(encoding="utf-8")
        assert page == tool.with_table(page, name, make()), f"run: python tools/docs_tables.py {name}"


def test_the_table_of_formats_has_every_shipped_one(tool: ModuleType) -> None:
    from xrlhf.data import map_fns

    table = tool.formats_table()
    shipped = [name for name in map_fns.__all__ if name.endswith("_map_fn")]
    assert [line.split("`")[1] for line in table.splitlines()[2:]] == sorted(shipped)
    assert "`margin`?" in table
    assert all(line.replace(r"\|", "").count("|") == 6 for line in table.splitlines())


def test_a_page_without_the_place(tool: ModuleType) -> None:
    with pytest.raises(ValueError, match="must hold <!-- formats: begin -->"):
        tool.with_table("nothing here", "formats", "table")


def test_writing(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "DOCS", tmp_path)
    (tmp_path / "formats.md").write_text("a\n<!-- formats: begin -->\nold\n<!-- formats: end -->\nb\n")
    assert tool.main(["formats"]) == 0
    text = (tmp_path / "formats.md").read_text()
    assert "old" not in text
    assert text.startswith("a\n<!-- formats: begin -->\n\n| map function | teaches |")


@pytest.mark.parametrize(("arguments", "found"), [([], "none"), (["papers"], "papers")])
def test_names_that_there_are_not(
    tool: ModuleType, arguments: list[str], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(arguments) == 2
    assert capsys.readouterr().err == f"expected one or more of formats; found {found}\n"
