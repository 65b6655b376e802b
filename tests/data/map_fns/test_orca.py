"""Orca pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xrlhf.data.map_fns import orca_dpo_pairs_map_fn
from xrlhf.data.reasons import Reason, RowError
from xrlhf.errors import ConfigError

ROW = {"system": "s", "question": "2+2?", "chosen": "4", "rejected": "5"}


def test_a_system_text_comes_first() -> None:
    group = orca_dpo_pairs_map_fn(ROW)
    assert group.prompt == [{"role": "system", "content": "s"}, {"role": "user", "content": "2+2?"}]
    assert group.responses == ([{"role": "assistant", "content": "4"}], [{"role": "assistant", "content": "5"}])
    assert group.ratings is None


@pytest.mark.parametrize("system", ["", " \n"])
def test_a_blank_system_text_gives_no_message(system: str) -> None:
    assert orca_dpo_pairs_map_fn({**ROW, "system": system}).prompt == [{"role": "user", "content": "2+2?"}]


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"system": None}, Reason.WRONG_TYPE, "system is null; expected text"),
        ({"question": [1]}, Reason.WRONG_TYPE, "question is list; expected text"),
        ({"question": " "}, Reason.NO_PROMPT, "the prompt is blank"),
        ({"chosen": {}}, Reason.WRONG_TYPE, "chosen is object; expected text"),
        ({"rejected": ""}, Reason.EMPTY, "rejected is blank"),
        ({"rejected": "4"}, Reason.IDENTICAL, "chosen and rejected are the same"),
    ],
)
def test_rows_that_cannot_be_used(change: dict[str, Any], reason: Reason, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        orca_dpo_pairs_map_fn({**ROW, **change})
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_older_copies_are_told_the_new_names() -> None:
    row = {"system": "", "question": "q", "chatgpt": "a", "llama2-13b-chat": "b"}
    with pytest.raises(RowError) as caught:
        orca_dpo_pairs_map_fn(row)
    assert caught.value.reason is Reason.MISSING_COLUMN
    assert caught.value.detail == (
        "column 'chosen' is missing; the row has 'system', 'question', 'chatgpt', 'llama2-13b-chat'; older copies call "
        "the answers chatgpt and llama2-13b-chat: rename these columns to chosen and rejected"
    )


def test_blank_answers_on_demand() -> None:
    assert orca_dpo_pairs_map_fn({**ROW, "rejected": ""}, empty="keep").responses[1][0]["content"] == ""  # type: ignore[index]
    with pytest.raises(ConfigError, match="empty=None"):
        orca_dpo_pairs_map_fn(ROW, empty=None)  # type: ignore[arg-type]


def test_schema_rows(rows_of: Callable[[str], list[dict[str, Any]]]) -> None:
    with_system, without = rows_of("orca_dpo_pairs")
    assert [m["role"] for m in orca_dpo_pairs_map_fn(with_system).prompt] == ["system", "user"]  # type: ignore[index]
    assert [m["role"] for m in orca_dpo_pairs_map_fn(without).prompt] == ["user"]  # type: ignore[index]
