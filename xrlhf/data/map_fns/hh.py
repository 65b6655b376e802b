"""Transcripts of Anthropic's helpful and harmless assistant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import column, group_of, meta_of, split_conversations
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group, Message

__all__ = ["hh_map_fn", "parse_transcript"]

_MARKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: Any, where: str) -> list[Message]:
    """The turns of a transcript as messages.

    A turn begins at two newlines and ``Human:`` or ``Assistant:``, nowhere else. One blank behind the colon belongs to
    the marker; everything else, blank lines and trailing blanks included, is text.

    Args:
        text: The transcript.
        where: Its column, for messages.
    """
    if not isinstance(text, str):
        raise RowError(Reason.WRONG_TYPE, f"{where} is {kind_of(text)}; expected a transcript as text")
    before, *turns = _MARKER.split(text)
    if before or not turns or turns[0] != "Human":
        raise RowError(Reason.WRONG_ROLES, rf"{where} does not begin with '\n\nHuman:'")
    return [
        {"role": _ROLES[marker], "content": said.removeprefix(" ")}
        for marker, said in zip(turns[::2], turns[1::2], strict=True)
    ]


@MAP_FNS.register_module()
def hh_map_fn(row: Mapping[str, Any], *, empty: Literal["drop", "keep"] = "drop") -> Group:
    r"""Transcripts with Human and Assistant turns: Anthropic/hh-rlhf.

    Columns:
        chosen (text): the better transcript, from the first Human turn to the answer.
        rejected (text): the worse transcript.

    The prompt is the run of turns that both sides share, up to the last Human turn in it. The answer is all that
    follows.

    Traps:
        - The text is cut at turn markers: answers often share their first words, and ``Human:`` inside a sentence is
          no turn.
        - A few rows have two Assistant turns in a row, in the prompt or in the answer. They stay two messages, so a
          chat template must allow that.
        - A few chosen answers are blank.

    Licence:
        MIT. The texts are offensive and disturbing in places.

    Args:
        row: One row.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them as empty answers.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: WRONG_TYPE, WRONG_ROLES (no Human turn at the start, no answer at the end), NO_PROMPT, EMPTY,
            IDENTICAL.

    Example:
        >>> group = hh_map_fn({
        ...     "chosen": "\n\nHuman: Name a fruit.\n\nAssistant: An apple.",
        ...     "rejected": "\n\nHuman: Name a fruit.\n\nAssistant: A brick.",
        ... })
        >>> group.prompt
        [{'role': 'user', 'content': 'Name a fruit.'}]
        >>> group.responses
        ([{'role': 'assistant', 'content': 'An apple.'}], [{'role': 'assistant', 'content': 'A brick.'}])
    """
    names = ("chosen", "rejected")
    transcripts = [parse_transcript(column(row, name), name) for name in names]
    prompt, answers = split_conversations(transcripts, names)
    return group_of(prompt, answers, names, meta=meta_of(row), empty=empty)
