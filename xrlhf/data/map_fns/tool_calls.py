"""Calls of tools inside messages, in the one shape that chat templates read.

A call is ``{"type": "function", "function": {"name": str, "arguments": object}}``, with the ``id`` it was given. The
arguments are an object: templates write them as JSON themselves, and would quote a text a second time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from xrlhf.data.reasons import Reason, RowError, kind_of

__all__ = ["check_tool_calls", "tool_calls_from_json"]


def check_tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls of an assistant message in canonical form, in new objects.

    Args:
        value: A list of calls, each ``{"function": {"name", "arguments"}}`` or the inner object alone. Arguments are an
            object, or JSON text of one as OpenAI's interface has them; where they are missing there are none.
        where: The place in the row, for messages.

    Raises:
        RowError: WRONG_TYPE.
    """
    if not isinstance(value, (list, tuple)):
        raise RowError(Reason.WRONG_TYPE, f"{where} is {kind_of(value)}; expected a list of tool calls")
    return [_check_call(item, f"{where}[{index}]") for index, item in enumerate(value)]


def tool_calls_from_json(text: str, where: str) -> list[dict[str, Any]]:
    """The calls that a text holds as JSON: one object with name and arguments, or a list of them.

    Raises:
        RowError: WRONG_TYPE.
    """
    try:
        value = json.loads(text)
    except ValueError:
        raise RowError(
            Reason.WRONG_TYPE, f"{where} is text that is not JSON; expected a tool call with 'name' and 'arguments'"
        ) from None
    calls = check_tool_calls(value if isinstance(value, list) else [value], where)
    if not calls:
        raise RowError(Reason.WRONG_TYPE, f"{where} is an empty list; expected a tool call with 'name' and 'arguments'")
    return calls


def _check_call(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise RowError(Reason.WRONG_TYPE, f"{where} is {kind_of(item)}; expected a tool call with 'name'")
    called = item if item.get("function") is None else item["function"]
    if not isinstance(called, Mapping):
        raise RowError(Reason.WRONG_TYPE, f"{where}.function is {kind_of(called)}; expected an object with 'name'")
    name = called.get("name")
    if not isinstance(name, str) or not name:
        raise RowError(Reason.WRONG_TYPE, f"{where} has no name of a tool (found {kind_of(name)}); expected text")
    call = {"type": "function", "function": {"name": name, "arguments": _arguments(called.get("arguments"), where)}}
    return call if item.get("id") is None else {"id": item["id"], **call}


def _arguments(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            raise RowError(
                Reason.WRONG_TYPE, f"{where}.arguments is text that is not JSON; expected an object"
            ) from None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RowError(Reason.WRONG_TYPE, f"{where}.arguments is {kind_of(value)}; expected an object")
    return dict(value)
