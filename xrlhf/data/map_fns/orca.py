"""Orca prompts, answered by a strong and a weak model or by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import (
    column,
    conversation_group,
    group_of,
    meta_of,
    question_of,
    text_of,
    with_system,
)
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group

__all__ = ["orca_dpo_pairs_map_fn", "orca_map_fn"]

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
    prompt = with_system(question_of(row, "question"), row, "system", "question")
    answers = [[{"role": "assistant", "content": text_of(column(row, name, _OLD_NAMES), name)}] for name in names]
    return group_of(prompt, answers, names, meta=meta_of(row), empty=empty)


@MAP_FNS.register_module()
def orca_map_fn(
    row: Mapping[str, Any],
    *,
    system_column: str = "system",
    question_column: str = "question",
    answer_column: str = "chosen",
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    """A system text, a question and one answer: the better answers of Intel/orca_dpo_pairs, and Open-Orca/OpenOrca.

    Columns:
        system (text): the system text, blank in many rows.
        question (text): the user's turn.
        chosen (text): the answer.

    Traps:
        - A blank system text gives no system message.
        - OpenOrca calls the columns otherwise: ``system_column="system_prompt", answer_column="response"``.

    Kind:
        SFT

    Licence:
        Apache-2.0 (orca_dpo_pairs), MIT (OpenOrca).

    Args:
        row: One row.
        system_column: Name of the system text's column.
        question_column: Name of the question's column.
        answer_column: Name of the answer's column.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of the one answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT (a blank question), EMPTY.

    Example:
        >>> group = orca_map_fn({"system": "You are terse.", "question": "2+2?", "chosen": "4", "rejected": "5"})
        >>> group.prompt
        [{'role': 'system', 'content': 'You are terse.'}, {'role': 'user', 'content': '2+2?'}]
        >>> group.responses
        ([{'role': 'assistant', 'content': '4'}],)
    """
    prompt = with_system(question_of(row, question_column), row, system_column, question_column)
    answer = {"role": "assistant", "content": text_of(column(row, answer_column), answer_column)}
    return conversation_group([*prompt, answer], "the row", name=answer_column, meta=meta_of(row), empty=empty)
