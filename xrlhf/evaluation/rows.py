"""Rows to be scored: which conversations one JSON object holds, told by its columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrlhf.data.map_fns.hh import hh_map_fn
from xrlhf.data.map_fns.messages import check_answer, check_messages, check_prompt, split_conversations, text_of
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.structures import Group, Message

__all__ = ["LAYOUTS", "is_single", "scorable_group"]

LAYOUTS = (
    "messages",
    "text",
    "prompt + response",
    "prompt + responses",
    "prompt + chosen + rejected",
    "chosen + rejected",
)
"""Columns that a row to be scored may have; others are passed through."""


def is_single(row: Mapping[str, Any]) -> bool:
    """Whether a row holds one conversation, so that it gets a ``score`` rather than a list of ``scores``."""
    return "responses" not in row and "chosen" not in row


def scorable_group(row: Mapping[str, Any]) -> Group:
    """The conversations of a row as a group of one or more responses, in the row's own order.

    Args:
        row: One of :data:`LAYOUTS`. Text stands for one user or assistant message, except in the column ``text``,
            which is scored as it is, without roles; transcripts as of hh-rlhf are recognised.

    Raises:
        RowError: No such layout, or a column holds something else.
    """
    if "messages" in row:
        return _conversations([check_messages(row["messages"], "messages")], ["messages"])
    if "text" in row:
        return Group("", (text_of(row["text"], "text"),))
    if "prompt" in row:
        prompt = check_prompt(row["prompt"], "prompt")
        if "response" in row:
            return Group(prompt, (check_answer(row["response"], "response"),))
        if "responses" in row:
            if not isinstance(row["responses"], (list, tuple)) or not row["responses"]:
                raise RowError(
                    Reason.WRONG_TYPE, f"responses is {kind_of(row['responses'])}; expected a list of answers"
                )
            answers = [check_answer(item, f"responses[{i}]") for i, item in enumerate(row["responses"])]
            return Group(prompt, tuple(answers))
        if "chosen" in row and "rejected" in row:
            return Group(prompt, tuple(check_answer(row[name], name) for name in ("chosen", "rejected")))
    if "chosen" in row and "rejected" in row:
        if isinstance(row["chosen"], str):
            return hh_map_fn(row, empty="keep")
        names = ["chosen", "rejected"]
        return _conversations([check_messages(row[name], name) for name in names], names)
    found = ", ".join(map(str, list(row)[:8])) or "nothing"
    raise RowError(Reason.MISSING_COLUMN, f"found {found}; expected one of: {'; '.join(LAYOUTS)}")


def _conversations(conversations: list[list[Message]], names: list[str]) -> Group:
    if len(conversations) > 1:
        prompt, answers = split_conversations(conversations, names)
        return Group(prompt, tuple(answers))
    (messages,) = conversations
    if not messages or messages[-1]["role"] != "assistant":
        raise RowError(Reason.WRONG_ROLES, f"{names[0]} does not end with an assistant message, so there is no answer")
    return Group(messages[:-1], (messages[-1:],))
