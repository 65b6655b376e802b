"""The list of formats, and the docstrings it is read from."""

from __future__ import annotations

import doctest
import inspect
import sys
from typing import Any, Literal

import pytest

from xrlhf.data import map_fns
from xrlhf.data.map_fns import Column, FormatInfo, FormatOption, describe_format, describe_formats, find_format
from xrlhf.errors import ConfigError
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
    assert len(info.columns) >= 2 or name in ("chosen_only_map_fn", "helpsteer2_pair_map_fn", "text_map_fn")
    assert info.columns
    assert info.traps
    assert info.licence
    doc = inspect.getdoc(getattr(map_fns, name)) or ""
    for section in ("Columns:", "Traps:", "Licence:", "Args:", "Returns:", "Raises:", "Example:"):
        assert f"\n{section}\n" in doc, section
    for option in info.options:
        assert option.meaning, option.name


@pytest.mark.parametrize("name", SHIPPED)
def test_every_example_gives_what_it_says(name: str) -> None:
    function = getattr(map_fns, name)
    module = sys.modules[function.__module__]
    examples = doctest.DocTestFinder().find(function, name, globs=vars(module).copy())
    results = [doctest.DocTestRunner().run(example) for example in examples]
    assert sum(result.attempted for result in results) >= 2
    assert sum(result.failed for result in results) == 0


def test_what_the_formats_teach() -> None:
    kinds = {name: FORMATS[name].kind for name in SHIPPED}
    assert {name for name, kind in kinds.items() if kind == "SFT"} == {
        *("alpaca_map_fn", "chosen_only_map_fn", "completion_map_fn", "messages_map_fn", "orca_map_fn"),
        *("sharegpt_map_fn", "text_map_fn"),
    }
    assert {name for name, kind in kinds.items() if kind == "rated answers"} == {"helpsteer2_map_fn", "kto_map_fn"}
    assert set(kinds.values()) == {"SFT", "rated answers", "preferences"}


def test_what_is_read_from_a_docstring() -> None:
    assert FORMATS["hh_map_fn"] == FormatInfo(
        name="hh_map_fn",
        summary="Transcripts with Human and Assistant turns: Anthropic/hh-rlhf.",
        columns=(
            Column("chosen", "text", "the better transcript, from the first Human turn to the answer."),
            Column("rejected", "text", "the worse transcript."),
        ),
        licence="MIT. The texts are offensive and disturbing in places.",
        options=(
            FormatOption(
                "empty",
                default="drop",
                choices=("drop", "keep"),
                meaning='``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them as empty answers.',
            ),
        ),
        traps=(
            "The text is cut at turn markers: answers often share their first words, and ``Human:`` inside a sentence "
            "is no turn.",
            "A few rows have two Assistant turns in a row, in the prompt or in the answer. They stay two messages, so "
            "a chat template must allow that.",
            "A few chosen answers are blank.",
        ),
        imports=("from xrlhf.data.map_fns import hh_map_fn",),
        recipe='dict(source="FILE", map_fn=hh_map_fn)',
    )
    cleaned = {column.name for column in FORMATS["ultrafeedback_cleaned_map_fn"].columns}
    assert {"chosen-rating", "rejected-rating"} <= cleaned
    margin = FORMATS["pair_map_fn"].columns[-1]
    assert (margin.name, margin.optional) == ("margin", True)
    assert not FORMATS["pair_map_fn"].columns[0].optional


def test_a_function_of_the_users_own() -> None:
    def bare(row: Any, *, limit: int = 3) -> Any:
        return row

    assert describe_format("bare", bare) == FormatInfo(
        name="bare",
        summary="",
        columns=(),
        licence="",
        options=(FormatOption("limit", default=3),),
        traps=(),
        imports=(f"from {__name__} import bare",),
        recipe='dict(source="FILE", map_fn=bare)',
    )

    def annotated(row: Any, *, kind: NotImported = None) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return row

    assert describe_format("annotated", annotated).options == (FormatOption("kind"),)

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


def test_options_that_must_be_chosen_stand_in_the_recipe() -> None:
    info = FORMATS["pku_saferlhf_map_fn"]
    label = info.options[0]
    assert (label.name, label.required, label.choices) == ("label", True, ("better", "safer"))
    assert info.recipe == 'dict(source="FILE", map_fn=dict(type=pku_saferlhf_map_fn, label="better"))'

    def choosy(row: Any, *, mode: Literal["a", "b"], limit: int) -> Any:
        return row

    assert describe_format("choosy", choosy).recipe == (
        'dict(source="FILE", map_fn=dict(type=choosy, mode="a", limit=...))'
    )


def test_a_recipe_of_its_own() -> None:
    info = FORMATS["helpsteer2_pair_map_fn"]
    assert info.imports == (
        "from xrlhf.data.map_fns import helpsteer2_pair_map_fn",
        "from xrlhf.data.sources import JoinedRowsSource",
    )
    assert info.recipe.startswith("dict(source=dict(type=JoinedRowsSource, ")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_line_can_be_run(name: str) -> None:
    from xrlhf.data.dataset import resolve_map_fn

    info = FORMATS[name]
    names: dict[str, Any] = {}
    exec("\n".join(info.imports), names)
    spec = eval(info.recipe, names)
    assert resolve_map_fn(spec["map_fn"])


@pytest.mark.parametrize("name", ["shp", "shp_map_fn"])
def test_a_format_by_name(name: str) -> None:
    assert find_format(name) == FORMATS["shp_map_fn"]


@pytest.mark.parametrize(("name", "nearest"), [("shp_map_fm", "'shp_map_fn'"), ("nectr", "'nectar'"), ("zzzzzz", "")])
def test_no_such_format(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"no format is called '{name}'.*{nearest}.*list-dataset-formats"):
        find_format(name)


def test_formats_by_pattern() -> None:
    def found(pattern: str) -> list[str]:
        return [info.name for info in describe_formats(pattern)]

    assert found("helpsteer3") == ["helpsteer3_preference_map_fn"]
    assert found("reward_bench*") == ["reward_bench_2_map_fn", "reward_bench_map_fn"]
    assert found("bench*") == []
