"""Rows to be scored: which conversations one JSON object holds, told by its columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrlhf.data.map_fns.hh import parse_transcript
from xrlhf.data.map_fns.messages import (
    check_answer,
    check_messages,
    check_prompt,
    is_blank,
    split_conversations,
    text_of,
)
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.structures import Group, Message

__all__ = ["LAYOUTS", "is_single", "scorable_group"]

LAYOUTS = (
    "prompt + chosen + rejected",
    "chosen + rejected",
    "prompt + responses",
    "messages",
    "text",
    "prompt + response",
)
"""Columns that a row to be scored may have, the first that fits decides; others are passed through."""

_PAIR = ("chosen", "rejected")
_SEVERAL = ("prompt + chosen + rejected", "chosen + rejected", "prompt + responses")


def is_single(row: Mapping[str, Any]) -> bool:
    """Whether a row holds one conversation, so that it gets a ``score`` rather than a list of ``scores``."""
    return _layout(row) not in _SEVERAL


def _layout(row: Mapping[str, Any]) -> str | None:
    # Arrow files fill in the columns of other rows with nulls.
    present = {name for name, value in row.items() if value is not None}
    return next((layout for layout in LAYOUTS if present.issuperset(layout.split(" + "))), None)


def scorable_group(row: Mapping[str, Any]) -> Group:
    """The conversations of a row as a group of one or more responses, in the row's own order.

    Args:
        row: One of :data:`LAYOUTS`. Text stands for one user or assistant message, except in the column ``text``,
            which is scored as it is, without roles; transcripts as of hh-rlhf are recognised. ``chosen`` and
            ``rejected`` may hold whole conversations, beside a ``prompt`` or without one.

    Raises:
        RowError: No such layout, or a column holds something else.
    """
    layout = _layout(row)
    if layout == "messages":
        return _one_conversation(check_messages(row["messages"], "messages"), "messages")
    if layout == "text":
        text = text_of(row["text"], "text")
        if is_blank(text):
            raise RowError(Reason.EMPTY, "text is blank")
        return Group("", (text,))
    if layout == "prompt + response":
        return Group(check_prompt(row["prompt"], "prompt"), (check_answer(row["response"], "response"),))
    if layout == "prompt + responses":
        answers = row["responses"]
        if not isinstance(answers, (list, tuple)) or not answers:
            found = "an empty list" if isinstance(answers, (list, tuple)) else kind_of(answers)
            raise RowError(Reason.WRONG_TYPE, f"responses is {found}; expected a list of answers")
        checked = [check_answer(item, f"responses[{i}]") for i, item in enumerate(answers)]
        return Group(check_prompt(row["prompt"], "prompt"), tuple(checked))
    if layout == "prompt + chosen + rejected" and not all(_is_conversation(row[name]) for name in _PAIR):
        return Group(check_prompt(row["prompt"], "prompt"), tuple(check_answer(row[name], name) for name in _PAIR))
    if layout is not None:
        parse = parse_transcript if all(isinstance(row[name], str) for name in _PAIR) else check_messages
        prompt, parted = split_conversations([parse(row[name], name) for name in _PAIR], _PAIR)
        return Group(prompt, tuple(parted))
    found = ", ".join(map(str, list(row)[:8])) or "nothing"
    raise RowError(Reason.MISSING_COLUMN, f"found {found}; expected one of: {'; '.join(LAYOUTS)}")


def _is_conversation(value: Any) -> bool:
    """Whether an answer column holds a list of messages that does not begin with the answer."""
    if not isinstance(value, (list, tuple)) or not value or not isinstance(value[0], Mapping):
        return False
    return value[0].get("role") in ("system", "user")


def _one_conversation(messages: list[Message], name: str) -> Group:
    if not messages or messages[-1]["role"] != "assistant":
        raise RowError(Reason.WRONG_ROLES, f"{name} does not end with an assistant message, so there is no answer")
    return Group(messages[:-1], (messages[-1:],))
