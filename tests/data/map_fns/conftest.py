"""Rows written by hand, one or more for every public layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RowsOf = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def rows_of(shared_data: Path) -> RowsOf:
    """The example rows of a layout, by its name in ``schema-rows/rows.json``."""
    items = json.loads((shared_data / "schema-rows" / "rows.json").read_text(encoding="utf-8"))

    def rows(name: str) -> list[dict[str, Any]]:
        found = [item["row"] for item in items if item["format"] == name]
        assert found, f"no example row of {name}"
        return found

    return rows
