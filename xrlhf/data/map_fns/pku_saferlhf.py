"""Answers judged twice: which is better, and which is safer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import (
    answers_of,
    check_choice,
    column,
    integer_of,
    meta_of,
    question_of,
    ranked_group,
)
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group

__all__ = ["pku_saferlhf_map_fn"]

_LABEL_COLUMNS = {"better": "better_response_id", "safer": "safer_response_id"}


@MAP_FNS.register_module()
def pku_saferlhf_map_fn(
    row: Mapping[str, Any], *, label: Literal["better", "safer"], empty: Literal["drop", "keep"] = "drop"
) -> Group:
    """A question and two answers, judged for helpfulness and for safety apart: PKU-Alignment/PKU-SafeRLHF.

    Columns:
        prompt (text): the user's turn.
        response_0 (text): the first answer.
        response_1 (text): the second answer.
        better_response_id (number): 0 or 1, which answer is more helpful.
        safer_response_id (number): 0 or 1, which answer is safer; variants with a single dimension lack it.
        prompt_source (text, optional): passed on.

    Traps:
        - The two labels often disagree: the caller says which one decides, and there is no default.
        - Some answers are blank.

    Licence:
        CC-BY-NC-4.0, so not for commercial training. The texts are harmful on purpose.

    Args:
        row: One row.
        label: Which label decides: ``"better"`` (helpfulness) or ``"safer"``.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of both answers, the one that the label prefers first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT (a blank question), BAD_LABEL (an id other than 0 and 1), EMPTY,
            IDENTICAL.

    Example:
        >>> row = {
        ...     "prompt": "How do I hide money?",
        ...     "response_0": "Like this.",
        ...     "response_1": "I will not help.",
        ...     "better_response_id": 0,
        ...     "safer_response_id": 1,
        ... }
        >>> pku_saferlhf_map_fn(row, label="better").responses[0]
        [{'role': 'assistant', 'content': 'Like this.'}]
        >>> pku_saferlhf_map_fn(row, label="safer").responses[0]
        [{'role': 'assistant', 'content': 'I will not help.'}]
    """
    check_choice("label", label, tuple(_LABEL_COLUMNS))
    name = _LABEL_COLUMNS[label]
    hint = "this variant of the set has the label 'better' alone" if label == "safer" else ""
    preferred = integer_of(column(row, name, hint), name, (0, 1))
    names = ("response_0", "response_1")
    values = [float(index == preferred) for index in range(2)]
    return ranked_group(
        question_of(row, "prompt"),
        answers_of(row, names),
        names,
        values,
        meta=meta_of(row, "prompt_source"),
        empty=empty,
    )
