"""Rows in Alpaca's layout: an instruction and its input make the user's turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import (
    check_answer,
    column,
    conversation_group,
    group_of,
    is_blank,
    meta_of,
    text_of,
)
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group, Message

__all__ = ["alpaca_map_fn", "alpaca_prompt", "llamafactory_alpaca_map_fn"]


def alpaca_prompt(
    row: Mapping[str, Any],
    *,
    instruction_column: str = "instruction",
    input_column: str = "input",
    system_column: str = "system",
    history_column: str = "history",
) -> list[Message]:
    """The prompt of an Alpaca row: the system text, earlier turns, and one user turn.

    The user's turn is the instruction, and a newline and the input where there is one (LLaMA-Factory,
    src/llamafactory/data/converter.py).

    Args:
        row: The row.
        instruction_column: Name of the instruction's column.
        input_column: Name of the input's column, which a row may lack.
        system_column: Name of the system text's column, which a row may lack.
        history_column: Name of the column of earlier turns, ``[[user, assistant], ...]``, which a row may lack.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE.
    """
    messages: list[Message] = []
    if row.get(system_column) is not None and not is_blank(system := text_of(row[system_column], system_column)):
        messages.append({"role": "system", "content": system})
    history = [] if row.get(history_column) is None else row[history_column]
    if not isinstance(history, (list, tuple)):
        raise RowError(Reason.WRONG_TYPE, f"{history_column} is {kind_of(history)}; expected a list of turns")
    for index, turn in enumerate(history):
        where = f"{history_column}[{index}]"
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            found = f"a list of {len(turn)}" if isinstance(turn, (list, tuple)) else kind_of(turn)
            raise RowError(Reason.WRONG_TYPE, f"{where} is {found}; expected [user text, assistant text]")
        messages.append({"role": "user", "content": text_of(turn[0], f"{where}[0]")})
        messages.append({"role": "assistant", "content": text_of(turn[1], f"{where}[1]")})
    asked = text_of(column(row, instruction_column), instruction_column)
    if row.get(input_column) is not None and (more := text_of(row[input_column], input_column)):
        asked = f"{asked}\n{more}"
    messages.append({"role": "user", "content": asked})
    return messages


@MAP_FNS.register_module()
def llamafactory_alpaca_map_fn(
    row: Mapping[str, Any],
    *,
    instruction_column: str = "instruction",
    input_column: str = "input",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    system_column: str = "system",
    history_column: str = "history",
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    r"""An instruction with its input and two answers: LLaMA-Factory's Alpaca preference layout.

    Columns:
        instruction (text): the user's turn.
        input (text, optional): what follows the instruction behind a newline; nothing does where it is empty.
        chosen (text): the better answer.
        rejected (text): the worse answer.
        system (text, optional): the system text; blank text gives no message.
        history (list, optional): earlier turns, each [user text, assistant text].

    Traps:
        - An empty input adds no newline.
        - LLaMA-Factory calls these columns prompt, query, response, system and history where it configures them; here
          they are named as the rows have them.

    Licence:
        That of the set.

    Args:
        row: One row.
        instruction_column: Name of the instruction's column.
        input_column: Name of the input's column.
        chosen_column: Name of the better answer's column.
        rejected_column: Name of the worse answer's column.
        system_column: Name of the system text's column.
        history_column: Name of the column of earlier turns.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT (a blank instruction), EMPTY, IDENTICAL.

    Example:
        >>> row = {"instruction": "Translate", "input": "chat", "chosen": "cat", "rejected": "dog"}
        >>> group = llamafactory_alpaca_map_fn(row)
        >>> group.prompt
        [{'role': 'user', 'content': 'Translate\nchat'}]
        >>> group.responses
        ([{'role': 'assistant', 'content': 'cat'}], [{'role': 'assistant', 'content': 'dog'}])
    """
    names = (chosen_column, rejected_column)
    prompt = alpaca_prompt(
        row,
        instruction_column=instruction_column,
        input_column=input_column,
        system_column=system_column,
        history_column=history_column,
    )
    answers = [check_answer(column(row, name), name) for name in names]
    return group_of(prompt, answers, names, meta=meta_of(row), empty=empty)


@MAP_FNS.register_module()
def alpaca_map_fn(
    row: Mapping[str, Any],
    *,
    instruction_column: str = "instruction",
    input_column: str = "input",
    output_column: str = "output",
    system_column: str = "system",
    history_column: str = "history",
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    r"""An instruction with its input and an answer: Stanford Alpaca's layout, as LLaMA-Factory extends it.

    Columns:
        instruction (text): the user's turn.
        input (text, optional): what follows the instruction behind a newline; nothing does where it is empty.
        output (text): the answer.
        system (text, optional): the system text; blank text gives no message.
        history (list, optional): earlier turns, each [user text, assistant text].

    Traps:
        - An empty input adds no newline.
        - The tokenizer's chat template frames the turns; Alpaca's own "### Instruction:" frame is not written.

    Kind:
        SFT

    Licence:
        That of the set (Stanford's own 52K rows: CC-BY-NC-4.0).

    Args:
        row: One row.
        instruction_column: Name of the instruction's column.
        input_column: Name of the input's column.
        output_column: Name of the answer's column.
        system_column: Name of the system text's column.
        history_column: Name of the column of earlier turns.
        empty: ``"drop"`` leaves rows with a blank answer out, also one in the history; ``"keep"`` keeps them.

    Returns:
        The group of the one answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT (a blank instruction), EMPTY.

    Example:
        >>> group = alpaca_map_fn({"instruction": "Translate", "input": "chat", "output": "cat", "history": []})
        >>> group.prompt, group.responses
        ([{'role': 'user', 'content': 'Translate\nchat'}], ([{'role': 'assistant', 'content': 'cat'}],))
        >>> group = alpaca_map_fn({"instruction": "And dog?", "output": "chien", "history": [["Cat?", "chat"]]})
        >>> [message["content"] for message in group.prompt]
        ['Cat?', 'chat', 'And dog?']
    """
    prompt = alpaca_prompt(
        row,
        instruction_column=instruction_column,
        input_column=input_column,
        system_column=system_column,
        history_column=history_column,
    )
    answer = {"role": "assistant", "content": text_of(column(row, output_column), output_column)}
    if is_blank(prompt[-1]["content"]):
        raise RowError(Reason.NO_PROMPT, f"{instruction_column} is blank")
    return conversation_group([*prompt, answer], history_column, name=output_column, meta=meta_of(row), empty=empty)
