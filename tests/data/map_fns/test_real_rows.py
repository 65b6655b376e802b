"""Real files of public sets: what becomes of every row."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from xrlhf.data.map_fns import (
    kto_map_fn,
    llamafactory_sharegpt_map_fn,
    llamafactory_v1_map_fn,
    skywork_map_fn,
    stack_exchange_paired_map_fn,
)
from xrlhf.data.map_fns.sharegpt import sharegpt_messages
from xrlhf.data.sources import open_source


def rows_of(path: Path) -> list[Any]:
    return [row.value for row in open_source(path).rows()]


@pytest.mark.parametrize(
    ("language", "numbers"),
    [("en", {1: 114, 2: 80, 3: 1, 5: 57, 7: 46, 9: 1, 13: 1}), ("zh", {1: 236, 2: 64})],
)
def test_llama_factory_preference_demos(shared_data: Path, language: str, numbers: dict[int, int]) -> None:
    """300 rows each; the set's description counts the messages of the prompts."""
    rows = rows_of(shared_data / "llama-factory" / f"dpo_{language}_demo.json")
    groups = [llamafactory_sharegpt_map_fn(row) for row in rows]
    assert Counter(len(group.prompt) for group in groups) == numbers
    for row, group in zip(rows, groups, strict=True):
        said: Any = [*group.prompt, *group.responses[0], *group.responses[1]]
        written = [*row["conversations"], row["chosen"], row["rejected"]]
        assert [message["content"] for message in said] == [message["value"] for message in written]
        assert group.prompt[-1]["role"] == "user"  # type: ignore[index]


def test_llama_factory_kto_demo(shared_data: Path) -> None:
    rows = rows_of(shared_data / "llama-factory" / "kto_en_demo.json")
    groups = [kto_map_fn(row) for row in rows]
    assert Counter(group.ratings for group in groups) == {(1.0,): 150, (0.0,): 150}
    for row, group in zip(rows, groups, strict=True):
        assert [message["content"] for message in group.conversations()[0]] == [  # type: ignore[index]
            message["content"] for message in row["messages"]
        ]
        assert group.ratings == (float(row["label"]),)


def test_llama_factory_v1_demo(shared_data: Path) -> None:
    rows = rows_of(shared_data / "llama-factory" / "v1_dpo_demo.jsonl")
    groups = [llamafactory_v1_map_fn(row) for row in rows]
    assert len(groups) == 10
    for group in groups:
        assert [message["role"] for message in group.prompt] == ["system", "user"]  # type: ignore[index]
        assert [answer[0]["loss_weight"] for answer in group.responses] == [1.0, 1.0]  # type: ignore[index]


def test_llama_factory_tool_calls(shared_data: Path) -> None:
    """300 conversations with 211 calls, each of them valid JSON."""
    rows = rows_of(shared_data / "llama-factory" / "glaive_toolcall_en_demo.json")
    num_calls = 0
    for row in rows:
        messages = sharegpt_messages(row["conversations"], "conversations")
        for message, written in zip(messages, row["conversations"], strict=True):
            if written["from"] != "function_call":
                assert "tool_calls" not in message
                assert message["content"] == written["value"]
                continue
            num_calls += 1
            (call,) = message["tool_calls"]
            assert message["content"] == ""
            assert call["function"] == json.loads(written["value"])
    assert num_calls == 211


def test_stack_exchange_rows(shared_data: Path) -> None:
    """25 rows over 8 questions; j is the better answer."""
    rows = rows_of(shared_data / "torchtune-assets" / "stack_exchange_paired_tiny.json")
    groups = [stack_exchange_paired_map_fn(row) for row in rows]
    assert len(groups) == 25
    assert len({group.prompt[0]["content"] for group in groups}) == 8  # type: ignore[index]
    assert [group.responses[0][0]["content"] for group in groups] == [row["response_j"] for row in rows]  # type: ignore[index]


def test_message_lists_of_hh(shared_data: Path) -> None:
    (row,) = rows_of(shared_data / "torchtune-assets" / "hh_rlhf_tiny.json")
    group = skywork_map_fn(row)
    assert group.conversations() == [row["chosen"], row["rejected"]]
