"""Prompts from rows of data: which conversation one JSON object asks to go on with, and its token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from xrlhf.data.encoding import GroupEncoder, template_options
from xrlhf.data.map_fns.alpaca import alpaca_prompt
from xrlhf.data.map_fns.messages import (
    ROLES,
    check_answer,
    check_messages,
    check_prompt,
    is_blank,
    question_of,
    text_of,
    with_system,
)
from xrlhf.data.map_fns.sharegpt import sharegpt_messages
from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources import RawRow
from xrlhf.data.table import MapFn, map_row
from xrlhf.errors import ModelError
from xrlhf.evaluation.rows import scorable_group
from xrlhf.rl.samples import PromptRow
from xrlhf.structures import Conversation, Group, Message, as_ids

__all__ = ["ANSWER_COLUMNS", "PROMPT_LAYOUTS", "AskedRow", "PromptEncoder", "read_asked_row"]

PROMPT_LAYOUTS = ("prompt", "messages", "conversations", "instruction", "question", "text", "chosen + rejected")
"""Columns that a row of prompts may have, the first that fits decides; others are passed on."""

ANSWER_COLUMNS = ("chosen", "response", "completion", "answer", "output")
"""Where a row beside its prompt may have an answer, the first that is there."""

_SYSTEM_COLUMNS = ("system", "system_prompt")
_NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class AskedRow:
    """What a row asks.

    Args:
        prompt: Messages that end with a question, or text to go on with.
        answer: The answer that the row has already, the best where it has several; None where it has none.
        meta: The row's other columns.
    """

    prompt: Conversation
    answer: Conversation | None
    meta: Mapping[str, Any]


def read_asked_row(raw: RawRow, map_fn: MapFn | None = None, *, plain: bool = False) -> AskedRow | RowError:
    """The prompt of a row, and its answer if it has one; or the reason why it cannot be asked.

    Args:
        raw: The row.
        map_fn: What reads it; None for the layouts of :data:`PROMPT_LAYOUTS`. What training drops, a tie or a blank
            answer, has a prompt all the same.
        plain: Whether texts are to be gone on with as they stand, without roles.

    Raises:
        DataError: The map function fails with anything but :class:`RowError`, or gives no group.
    """
    if isinstance(raw.value, RowError):
        return raw.value
    if map_fn is not None:
        found = map_row(raw, map_fn)
        group = found.group or found if isinstance(found, RowError) else found
        if isinstance(group, RowError):
            return group
        return AskedRow(group.prompt, group.responses[0], group.meta)
    try:
        return _asked(raw.value, plain=plain)
    except RowError as error:
        return error


def _asked(row: Mapping[str, Any], *, plain: bool) -> AskedRow:
    # Arrow files fill in the columns of other rows with nulls.
    present = {name for name, value in row.items() if value is not None}
    layout = next((layout for layout in PROMPT_LAYOUTS if present.issuperset(layout.split(" + "))), None)
    if layout is None:
        found = ", ".join(map(str, list(row)[:8])) or "nothing"
        raise RowError(Reason.MISSING_COLUMN, f"found {found}; expected one of: {'; '.join(PROMPT_LAYOUTS)}")
    if layout == "chosen + rejected":
        group = scorable_group(row)
        return AskedRow(group.prompt, group.responses[0], _others(row, *layout.split(" + ")))
    if layout in ("messages", "conversations"):
        messages = _messages(row, layout)
        prompt, answer = _split(messages, layout)
        return AskedRow(prompt, answer or None, _others(row, layout))
    if layout == "text" or (plain and isinstance(row[layout], str)):
        text = text_of(row[layout], layout)
        if is_blank(text):
            raise RowError(Reason.NO_PROMPT, f"{layout} is blank")
        return AskedRow(text, _text_answer(row, layout), _others(row, layout))
    used: tuple[str, ...]
    if layout == "instruction":
        asked, used = alpaca_prompt(row), ("instruction", "input", "system", "history")
    elif layout == "question":
        asked, used = question_of(row, layout), (layout,)
    else:
        asked, used = check_prompt(row[layout], layout), (layout,)
    system = next((name for name in _SYSTEM_COLUMNS if isinstance(row.get(name), str)), None)
    if layout != "instruction" and system is not None:
        asked, used = with_system(asked, row, system, layout), (*used, system)
    if all(is_blank(message["content"]) for message in asked if message["role"] != "system"):
        raise RowError(Reason.NO_PROMPT, "the prompt is blank")
    name = _answer_column(row, used)
    return AskedRow(asked, None if name is None else _answer(row[name], name, asked), _others(row, *used))


def _messages(row: Mapping[str, Any], layout: str) -> list[Message]:
    value = row[layout]
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping) and "from" in value[0]:
        return sharegpt_messages(value, layout)
    return check_messages(value, layout, roles=ROLES)


def _split(messages: list[Message], where: str) -> tuple[list[Message], list[Message]]:
    """A conversation up to its last question, and what answers that."""
    asked = [index for index, message in enumerate(messages) if message["role"] in ("user", "tool")]
    if not asked:
        raise RowError(Reason.NO_PROMPT, f"{where} holds no message by the user")
    return messages[: asked[-1] + 1], messages[asked[-1] + 1 :]


def _answer_column(row: Mapping[str, Any], used: Sequence[str]) -> str | None:
    return next((name for name in ANSWER_COLUMNS if name not in used and row.get(name) is not None), None)


def _answer(value: Any, name: str, prompt: list[Message]) -> list[Message]:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        if value[0].get("role") in ("system", "user"):
            # A whole conversation: what comes behind the prompt.
            return check_answer(list(value)[len(prompt) :], name)
        return check_answer(value, name)
    return check_answer(value, name)


def _text_answer(row: Mapping[str, Any], layout: str) -> str | None:
    name = _answer_column(row, (layout,))
    return None if name is None or not isinstance(row[name], str) else text_of(row[name], name)


def _others(row: Mapping[str, Any], *used: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in used and value is not None}


class PromptEncoder:
    """Encodes prompts as the policy reads them, up to where its answer begins.

    Args:
        tokenizer: The policy's tokenizer, with a chat template unless all prompts are text.
        max_length: Most tokens of a prompt; None for any.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._encoder = GroupEncoder(
            tokenizer, max_length=_NO_LIMIT, chat_template_kwargs={"add_generation_prompt": True}
        )

    def encode(self, asked: Sequence[tuple[int, AskedRow]]) -> list[PromptRow | RowError]:
        """Prompts by their position in the whole set, in order; a reason in the place of each that cannot be encoded.

        Raises:
            ModelError: Messages, and the tokenizer has no chat template.
        """
        spoken = [(index, row) for index, row in asked if not isinstance(row.prompt, str)]
        if spoken and self.tokenizer.chat_template is None:
            raise ModelError(
                f"the tokenizer {self.tokenizer.name_or_path!r} has no chat template to ask in: name one, or let "
                "texts be gone on with as they stand"
            )
        options = [template_options(Group(row.prompt, (), meta=row.meta)) for _, row in spoken]
        found = iter(self._encoder.encode_conversations([row.prompt for _, row in spoken], options))
        return [
            self._limited(index, row, self._ids_of_text(row.prompt) if isinstance(row.prompt, str) else next(found))
            for index, row in asked
        ]

    def _ids_of_text(self, text: str) -> np.ndarray | RowError:
        # Without the EOS that whole texts end on: the answer goes on from here.
        try:
            return as_ids(self.tokenizer(text, verbose=False)["input_ids"])
        except (TypeError, UnicodeError) as error:
            return RowError(Reason.WRONG_TYPE, f"the text cannot be tokenised: {error}")

    def _limited(self, index: int, row: AskedRow, ids: np.ndarray | RowError) -> PromptRow | RowError:
        if isinstance(ids, RowError):
            return ids
        if not len(ids):
            return RowError(Reason.EMPTY, "the prompt has no tokens")
        if self.max_length is not None and len(ids) > self.max_length:
            return RowError(Reason.TOO_LONG, f"the prompt takes {len(ids)} tokens, the limit is {self.max_length}")
        return PromptRow(row.prompt, ids, index, row.meta)
