"""The list of formats, and the docstrings it is read from."""

from __future__ import annotations

import doctest
import inspect
import sys
from typing import Any

import pytest

from xrlhf.data import map_fns
from xrlhf.data.map_fns import Column, FormatInfo, describe_format, describe_formats
from xrlhf.registry import MAP_FNS

FORMATS = {info.name: info for info in describe_formats()}
SHIPPED = sorted(name for name in map_fns.__all__ if name.endswith("_map_fn"))


def test_every_map_function_is_registered_exported_and_listed() -> None:
    assert set(SHIPPED) <= set(FORMATS)
    for name in SHIPPED:
        assert MAP_FNS.get(name) is getattr(map_fns, name)
    assert list(FORMATS) == sorted(FORMATS)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_docstring_says_what_a_user_needs(name: str) -> None:
    info = FORMATS[name]
    assert info.summary.endswith(".")
    assert len(info.columns) >= 2
    assert info.licence
    doc = inspect.getdoc(getattr(map_fns, name)) or ""
    for section in ("Columns:", "Traps:", "Licence:", "Args:", "Returns:", "Raises:", "Example:"):
        assert f"\n{section}\n" in doc, section
    for option in info.options:
        assert f"\n    {option}: " in doc, option


@pytest.mark.parametrize("name", SHIPPED)
def test_every_example_gives_what_it_says(name: str) -> None:
    function = getattr(map_fns, name)
    module = sys.modules[function.__module__]
    examples = doctest.DocTestFinder().find(function, name, globs=vars(module).copy())
    results = [doctest.DocTestRunner().run(example) for example in examples]
    assert sum(result.attempted for result in results) >= 2
    assert sum(result.failed for result in results) == 0


def test_what_is_read_from_a_docstring() -> None:
    assert FORMATS["hh_map_fn"] == FormatInfo(
        name="hh_map_fn",
        summary="Transcripts with Human and Assistant turns: Anthropic/hh-rlhf.",
        columns=(
            Column("chosen", "text", "the better transcript, from the first Human turn to the answer."),
            Column("rejected", "text", "the worse transcript."),
        ),
        licence="MIT. The texts are offensive and disturbing in places.",
        options={"empty": "drop"},
    )
    cleaned = {column.name for column in FORMATS["ultrafeedback_cleaned_map_fn"].columns}
    assert {"chosen-rating", "rejected-rating"} <= cleaned
    margin = FORMATS["pair_map_fn"].columns[-1]
    assert (margin.name, margin.optional) == ("margin", True)
    assert not FORMATS["pair_map_fn"].columns[0].optional


def test_a_function_of_the_users_own() -> None:
    def bare(row: Any, *, limit: int = 3) -> Any:
        return row

    assert describe_format("bare", bare) == FormatInfo("bare", "", (), "", {"limit": 3})

    def documented(row: Any) -> Any:
        """My rows.

        Columns:
            my column (text): goes on
                over two lines.

        And more text.
            x (y): not a column
        """
        return row

    info = describe_format("documented", documented)
    assert info.columns == (Column("my column", "text", "goes on over two lines."),)
