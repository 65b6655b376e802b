"""Rows to be scored: which conversations one JSON object holds, told by its columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from xrlhf.config.overrides import parse_value
from xrlhf.data.dataset import resolve_map_fn
from xrlhf.data.map_fns.hh import parse_transcript
from xrlhf.data.map_fns.listing import find_format
from xrlhf.data.map_fns.messages import (
    check_answer,
    check_messages,
    check_prompt,
    is_blank,
    split_conversations,
    text_of,
)
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.data.sources import RawRow
from xrlhf.data.table import MapFn, map_row
from xrlhf.errors import ConfigError
from xrlhf.structures import Group, Message

__all__ = ["LAYOUTS", "ScorableRow", "format_map_fn", "is_single", "read_row", "responses_of", "scorable_group"]

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


def responses_of(row: Mapping[str, Any]) -> list[Any]:
    """What a row that :func:`scorable_group` reads has in the place of each response, as it has it."""
    layout = _layout(row)
    if layout == "prompt + responses":
        return list(row["responses"])
    if layout in _SEVERAL:
        return [row[name] for name in _PAIR]
    return [row["response" if layout == "prompt + response" else str(layout)]]


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


def format_map_fn(name: str, options: Iterable[str] = ()) -> MapFn:
    """The map function of a format by its name, with or without ``_map_fn``, or by its dotted name.

    Args:
        name: Such as ``"shp"``, ``"shp_map_fn"`` or ``"my_package.my_map_fn"``.
        options: Options of the map function as ``name=value``.

    Raises:
        ConfigError: There is no such format, or it does not take these options.
    """
    given = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"format option {option!r}: expected name=value, such as label=safer")
        given[key] = parse_value(value)
    return resolve_map_fn({"type": name if "." in name else find_format(name).name, **given})


@dataclass(frozen=True)
class ScorableRow:
    """What a row gives to score.

    Args:
        group: Its conversations, in the row's own order.
        responses: What the row has in the place of each response, for those who choose among them.
        is_single: Whether the row holds one conversation, so that it gets a ``score`` and no list of ``scores``.
    """

    group: Group
    responses: list[Any]
    is_single: bool


def read_row(raw: RawRow, map_fn: MapFn | None = None) -> ScorableRow | RowError:
    """The conversations of a row, or the reason why they cannot be scored.

    What training drops, a tie or a blank answer, can be scored all the same.

    Args:
        raw: The row.
        map_fn: What reads it; None for the layouts of :data:`LAYOUTS`.

    Raises:
        DataError: The map function fails with anything but :class:`RowError`, or gives no group.
    """
    if isinstance(raw.value, RowError):
        return raw.value
    found = map_row(raw, map_fn or scorable_group)
    if map_fn is None:
        if isinstance(found, RowError):
            return found
        return ScorableRow(found, responses_of(raw.value), is_single(raw.value))
    ranked = found.group or found if isinstance(found, RowError) else found
    if isinstance(ranked, RowError):
        return ranked
    responses = ranked.in_row_order(ranked.responses)
    return ScorableRow(Group(ranked.prompt, tuple(responses), meta=ranked.meta), responses, len(responses) == 1)
