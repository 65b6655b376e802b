"""Tool calls, however a row writes them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from xrlhf.data.map_fns.messages import check_messages
from xrlhf.data.map_fns.tool_calls import check_tool_calls, tool_calls_from_json
from xrlhf.data.reasons import Reason, RowError

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    "given",
    [
        CALL,
        {"function": {"name": "add", "arguments": {"a": 1}}},
        {"name": "add", "arguments": {"a": 1}, "function": None},
        {"function": {"name": "add", "arguments": '{"a": 1}'}, "id": None},
    ],
)
def test_ways_to_write_a_call(given: dict[str, Any]) -> None:
    assert check_tool_calls([given], "m") == [CALL]


def test_an_id_is_kept_and_arguments_may_be_missing() -> None:
    expected = [{"id": "1", "type": "function", "function": {"name": "now", "arguments": {}}}]
    for arguments in ({}, {"arguments": None}, {"arguments": ""}):
        assert check_tool_calls(({"id": "1", "function": {"name": "now", **arguments}},), "m") == expected


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ("x", "m is text; expected a list of tool calls"),
        (["x"], "m[0] is text; expected a tool call with 'name'"),
        ([{"function": 3}], "m[0].function is number; expected an object with 'name'"),
        ([{"arguments": {}}], "m[0] has no name of a tool (found null); expected text"),
        ([{"name": 3}], "m[0] has no name of a tool (found number); expected text"),
        ([{"name": "f", "arguments": "{"}], "m[0].arguments is text that is not JSON; expected an object"),
        ([{"name": "f", "arguments": "[1]"}], "m[0].arguments is list; expected an object"),
    ],
)
def test_what_is_no_call(value: Any, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        check_tool_calls(value, "m")
    assert (caught.value.reason, caught.value.detail) == (Reason.WRONG_TYPE, detail)


def test_calls_as_json_text() -> None:
    assert tool_calls_from_json('{"name": "add", "arguments": {"a": 1}}', "m") == [CALL]
    assert tool_calls_from_json('[{"name": "add", "arguments": {"a": 1}}]', "m") == [CALL]


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("add(1)", "m is text that is not JSON; expected a tool call with 'name' and 'arguments'"),
        ("[]", "m is an empty list; expected a tool call with 'name' and 'arguments'"),
        ("3", "m[0] is number; expected a tool call with 'name'"),
    ],
)
def test_text_that_holds_no_call(text: str, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        tool_calls_from_json(text, "m")
    assert (caught.value.reason, caught.value.detail) == (Reason.WRONG_TYPE, detail)


def test_calls_inside_messages() -> None:
    ask = {"role": "user", "content": "1+1?"}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "7", "function": {"name": "add"}}]}
    told = {"role": "tool", "content": "2", "tool_call_id": "7", "name": "add"}
    _, called, answered = check_messages([ask, call, told], "m")
    assert called["tool_calls"][0]["function"] == {"name": "add", "arguments": {}}
    assert (called["content"], answered) == ("", told)
    plain = check_messages([ask, {"role": "assistant", "content": "2", "tool_calls": []}], "m")[1]
    assert "tool_calls" not in plain
    with pytest.raises(RowError) as caught:
        check_messages([{**ask, "tool_calls": [CALL]}], "m")
    assert caught.value.detail == "m[0] is by the user and calls tools; expected assistant"
