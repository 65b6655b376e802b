"""Lists of answers with a rank each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.hh import parse_transcript
from xrlhf.data.map_fns.messages import (
    check_answer,
    check_prompt,
    column,
    is_blank,
    meta_of,
    objects_of,
    ranked_group,
    rating_of,
)
from xrlhf.data.reasons import Reason, RowError, short
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group, Message

__all__ = ["nectar_map_fn"]


@MAP_FNS.register_module()
def nectar_map_fn(
    row: Mapping[str, Any],
    *,
    prompt_column: str = "prompt",
    answers_column: str = "answers",
    answer_key: str = "answer",
    rank_key: str = "rank",
    ratings: bool = False,
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
) -> Group:
    r"""A prompt and answers with a rank each: berkeley-nest/Nectar and sets like it.

    Columns:
        prompt (text or messages): a transcript that ends with an empty Assistant turn, a text, which becomes one turn
            of the user, or messages.
        answers (list): objects with answer (text or messages) and rank (number), 1 being the best.
        source (list, optional): passed on.
        good_natured (boolean, optional): passed on.

    Traps:
        - A lower rank is better.
        - The ranks are a judge's order of seven; a place between two answers says little about how far apart they are.
        - The list itself is in no order.

    Licence:
        Apache-2.0, on the condition that it is not used to compete with OpenAI; see its card.

    Args:
        row: One row.
        prompt_column: Name of the prompt's column.
        answers_column: Name of the answers' column.
        answer_key: Key of the text in an answer.
        rank_key: Key of the rank in an answer.
        ratings: Whether the ranks, negative so that higher is better, become the ratings of the group. They do in any
            case where two are equal.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows out whose answers all have the same rank, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of all answers, the best first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT, BAD_LABEL (a rank that is no number of 1 or more),
            BELOW_MINIMUM (fewer than two answers), EMPTY, IDENTICAL, TIE.

    Example:
        >>> group = nectar_map_fn({
        ...     "prompt": "\n\nHuman: 2+2?\n\nAssistant: ",
        ...     "answers": [{"answer": "5", "rank": 2}, {"answer": "4", "rank": 1}, {"answer": "22", "rank": 3}],
        ... })
        >>> group.prompt
        [{'role': 'user', 'content': '2+2?'}]
        >>> [answer[0]["content"] for answer in group.responses]
        ['4', '5', '22']
    """
    prompt = _prompt(column(row, prompt_column), prompt_column)
    items = objects_of(column(row, answers_column), answers_column, "answers")
    if len(items) < 2:
        raise RowError(Reason.BELOW_MINIMUM, f"{answers_column} holds {len(items)} answers; expected 2 or more")
    names = [f"{answers_column}[{index}]" for index in range(len(items))]
    answers = [
        check_answer(column(item, answer_key), f"{name}.{answer_key}") for item, name in zip(items, names, strict=True)
    ]
    ranks = [rating_of(column(item, rank_key), f"{name}.{rank_key}") for item, name in zip(items, names, strict=True)]
    for rank, name in zip(ranks, names, strict=True):
        if rank < 1:
            raise RowError(Reason.BAD_LABEL, f"{name}.{rank_key} is {short(rank)}; expected 1 (the best) or more")
    return ranked_group(
        prompt,
        answers,
        names,
        [-rank for rank in ranks],
        ratings=ratings,
        meta=meta_of(row, "good_natured"),
        empty=empty,
        ties=ties,
    )


def _prompt(value: Any, where: str) -> list[Message]:
    if not isinstance(value, str) or not value.startswith("\n\nHuman:"):
        return check_prompt(value, where)
    messages = parse_transcript(value, where)
    if messages[-1]["role"] == "assistant" and is_blank(messages[-1]["content"]):
        messages.pop()
    return check_prompt(messages, where)
