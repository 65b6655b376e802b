"""Pairs with a reference answer, for reward models that compare with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import check_answer, check_prompt, column, group_of, meta_of, says_nothing
from xrlhf.data.reasons import Reason, RowError, short
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group

__all__ = ["polar_reference_map_fn"]

_WRAPPERS = ("sft", "pretrain")


@MAP_FNS.register_module()
def polar_reference_map_fn(row: Mapping[str, Any], *, empty: Literal["drop", "keep"] = "drop") -> Group:
    """A prompt, a reference and two answers: InternLM/POLAR.

    Columns:
        prompt (text or messages): the prompt; it ends with the user or a tool.
        reference (text or messages): the answer that both are compared with.
        chosen (text or messages): the answer closer to the reference.
        rejected (text or messages): the other answer.
        wrapper (text, optional): sft or pretrain, how POLAR joins the texts; passed on.

    The checked reference is in ``meta["reference"]`` of the group.

    Traps:
        - Rankings alone learn nothing from the reference: a model has to be given it.

    Licence:
        That of the set.

    Args:
        row: One row.
        empty: ``"drop"`` leaves rows with a blank answer or reference out, ``"keep"`` keeps them.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT, BAD_LABEL (another wrapper), EMPTY, IDENTICAL.

    Example:
        >>> group = polar_reference_map_fn({
        ...     "prompt": [{"role": "user", "content": "Capital of China?"}],
        ...     "reference": [{"role": "assistant", "content": "Beijing."}],
        ...     "chosen": [{"role": "assistant", "content": "It is Beijing."}],
        ...     "rejected": [{"role": "assistant", "content": "Shanghai."}],
        ... })
        >>> group.responses[0]
        [{'role': 'assistant', 'content': 'It is Beijing.'}]
        >>> group.meta["reference"]
        [{'role': 'assistant', 'content': 'Beijing.'}]
    """
    names = ("chosen", "rejected")
    prompt = check_prompt(column(row, "prompt"), "prompt")
    answers = [check_answer(column(row, name), name) for name in names]
    wrapper = row.get("wrapper")
    if wrapper is not None and wrapper not in _WRAPPERS:
        raise RowError(Reason.BAD_LABEL, f"wrapper is {short(wrapper)}; expected {' or '.join(map(repr, _WRAPPERS))}")
    reference = check_answer(column(row, "reference"), "reference")
    meta = {**meta_of(row, "wrapper"), "reference": reference}
    group = group_of(prompt, answers, names, meta=meta, empty=empty)
    if empty == "drop" and says_nothing(reference):
        raise RowError(Reason.EMPTY, "reference is blank", group)
    return group
