"""Orca prompts answered by a strong and a weak model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import column, group_of, is_blank, meta_of, text_of
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group, Message

__all__ = ["orca_dpo_pairs_map_fn"]

_OLD_NAMES = "older copies call the answers chatgpt and llama2-13b-chat: rename these columns to chosen and rejected"


@MAP_FNS.register_module()
def orca_dpo_pairs_map_fn(row: Mapping[str, Any], *, empty: Literal["drop", "keep"] = "drop") -> Group:
    """A system text, a question and two answers: Intel/orca_dpo_pairs.

    Columns:
        system (text): the system text, blank in many rows.
        question (text): the user's turn.
        chosen (text): the better answer.
        rejected (text): the worse answer.

    Traps:
        - A blank system text gives no system message.
        - Older copies call the answers ``chatgpt`` and ``llama2-13b-chat``; they are refused rather than guessed.
        - HuggingFaceH4/orca_dpo_pairs is another layout, with lists of messages.

    Licence:
        Apache-2.0.

    Args:
        row: One row.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT (a blank question), EMPTY, IDENTICAL.

    Example:
        >>> row = {"system": "You are terse.", "question": "2+2?", "chosen": "4", "rejected": "5"}
        >>> group = orca_dpo_pairs_map_fn(row)
        >>> group.prompt
        [{'role': 'system', 'content': 'You are terse.'}, {'role': 'user', 'content': '2+2?'}]
        >>> group.responses
        ([{'role': 'assistant', 'content': '4'}], [{'role': 'assistant', 'content': '5'}])
    """
    names = ("chosen", "rejected")
    system = text_of(column(row, "system"), "system")
    prompt: list[Message] = [{"role": "user", "content": text_of(column(row, "question"), "question")}]
    if not is_blank(system):
        prompt.insert(0, {"role": "system", "content": system})
    answers = [[{"role": "assistant", "content": text_of(column(row, name, _OLD_NAMES), name)}] for name in names]
    return group_of(prompt, answers, names, meta=meta_of(row), empty=empty)
