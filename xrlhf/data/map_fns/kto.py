"""Single answers with a yes or no."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.alpaca import alpaca_prompt
from xrlhf.data.map_fns.messages import (
    META_COLUMNS,
    check_answer,
    check_messages,
    check_prompt,
    column,
    group_of,
    meta_of,
    split_last_answer,
)
from xrlhf.data.reasons import Reason, RowError, short
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group, Message

__all__ = ["kto_map_fn"]

_LABEL_COLUMNS = ("label", "kto_tag")
_LAYOUTS = ("messages", "prompt + completion", "instruction + output")


@MAP_FNS.register_module()
def kto_map_fn(
    row: Mapping[str, Any], *, label_column: str | None = None, empty: Literal["drop", "keep"] = "drop"
) -> Group:
    """One answer, wanted or not: rows for KTO as of LLaMA-Factory, argilla/kto-mix-15k and TRL.

    Columns:
        messages (messages, optional): the conversation; the last message is the answer, by the assistant.
        prompt (text or messages, optional): the prompt, beside completion.
        completion (text or messages, optional): the answer.
        instruction (text, optional): the user's turn in Alpaca's layout, with input, system and history.
        output (text, optional): the answer in Alpaca's layout.
        label (boolean): true where the answer is wanted; kto_tag in LLaMA-Factory's Alpaca layout.

    A row holds messages, or prompt and completion, or instruction and output: the first that is there decides. The
    group has one answer, rated 1 where the label is true and 0 where it is false.

    Traps:
        - The label is a boolean: 0, 1 and "true" are refused, since what they mean is a guess.
        - A single answer says nothing to a ranking loss.
        - A set whose labels are all alike teaches KTO little.

    Kind:
        rated answers

    Licence:
        That of the set (LLaMA-Factory's demo file: Apache-2.0; kto-mix-15k: MIT).

    Args:
        row: One row.
        label_column: Name of the label's column; label or kto_tag, whichever the row has, if None.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of the one answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT, BAD_LABEL (a label that is no boolean), EMPTY.

    Example:
        >>> group = kto_map_fn({
        ...     "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "5"}],
        ...     "label": False,
        ... })
        >>> group.prompt, group.responses
        ([{'role': 'user', 'content': '2+2?'}], ([{'role': 'assistant', 'content': '5'}],))
        >>> group.ratings
        (0.0,)
    """
    name = label_column or next((name for name in _LABEL_COLUMNS if row.get(name) is not None), _LABEL_COLUMNS[0])
    label = column(row, name)
    if not isinstance(label, bool):
        raise RowError(Reason.BAD_LABEL, f"{name} is {short(label)}; expected the boolean true or false")
    prompt, answer, answer_name = _conversation(row)
    return group_of(prompt, [answer], [answer_name], ratings=[float(label)], meta=meta_of(row), empty=empty)


def _conversation(row: Mapping[str, Any]) -> tuple[list[Message], list[Message], str]:
    if row.get("messages") is not None:
        prompt, answer = split_last_answer(check_messages(row["messages"], "messages"), "messages")
        return check_prompt(prompt, "messages"), answer, "the last of messages"
    if row.get("completion") is not None:
        answer = check_answer(row["completion"], "completion")
        return check_prompt(column(row, "prompt"), "prompt"), answer, "completion"
    if row.get("output") is not None:
        return alpaca_prompt(row), check_answer(row["output"], "output"), "output"
    found = ", ".join(short(str(key)) for key in row if key not in META_COLUMNS) or "nothing"
    raise RowError(Reason.MISSING_COLUMN, f"found {found}; expected one of: {'; '.join(_LAYOUTS)}")
