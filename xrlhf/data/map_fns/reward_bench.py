"""Benchmarks of reward models: RewardBench, RewardBench 2 and RM-Bench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import (
    answers_of,
    check_prompt,
    column,
    group_of,
    integer_of,
    meta_of,
    question_of,
    text_of,
)
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group, Message

__all__ = ["reward_bench_2_map_fn", "reward_bench_map_fn", "rm_bench_map_fn"]

_SIDES = ("chosen", "rejected")


@MAP_FNS.register_module()
def reward_bench_map_fn(row: Mapping[str, Any], *, empty: Literal["drop", "keep"] = "drop") -> Group:
    """A prompt and two answers by subsets: allenai/reward-bench.

    Columns:
        prompt (text or messages): text becomes one turn of the user.
        chosen (text): the right answer.
        rejected (text): the wrong answer.
        subset (text): what is tested; passed on.
        id (number): passed on.

    Traps:
        - A model is right where the chosen answer scores strictly higher, and subsets are weighted in the report.
        - A benchmark is for evaluation: training on it makes its numbers worthless.

    Licence:
        ODC-BY.

    Args:
        row: One row.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT, EMPTY, IDENTICAL.

    Example:
        >>> row = {"prompt": "2+2?", "chosen": "4", "rejected": "5", "subset": "math-prm", "id": 7}
        >>> group = reward_bench_map_fn(row)
        >>> group.responses
        ([{'role': 'assistant', 'content': '4'}], [{'role': 'assistant', 'content': '5'}])
        >>> group.meta
        {'id': 7, 'subset': 'math-prm'}
    """
    prompt = check_prompt(column(row, "prompt"), "prompt")
    meta = meta_of(row, "chosen_model", "rejected_model")
    return group_of(prompt, answers_of(row, _SIDES), _SIDES, meta=meta, empty=empty)


def _listed(row: Mapping[str, Any]) -> tuple[list[list[Message]], list[str], list[float]]:
    """The answers of the lists chosen and rejected, their names, and 1 or 0 for each."""
    answers: list[list[Message]] = []
    names: list[str] = []
    values: list[float] = []
    for side in _SIDES:
        texts = column(row, side)
        if not isinstance(texts, (list, tuple)):
            raise RowError(Reason.WRONG_TYPE, f"{side} is {kind_of(texts)}; expected a list of texts")
        if not texts:
            raise RowError(Reason.BAD_LABEL, f"{side} is an empty list; expected one answer or more")
        for index, text in enumerate(texts):
            names.append(f"{side}[{index}]")
            answers.append([{"role": "assistant", "content": text_of(text, names[-1])}])
            values.append(float(side == "chosen"))
    return answers, names, values


@MAP_FNS.register_module()
def reward_bench_2_map_fn(row: Mapping[str, Any], *, empty: Literal["drop", "keep"] = "drop") -> Group:
    """A prompt with right and wrong answers, usually one of four: allenai/reward-bench-2.

    Columns:
        prompt (text): the user's turn.
        chosen (list of texts): the right answers.
        rejected (list of texts): the wrong answers.
        subset (text): what is tested; passed on.
        id (text): passed on; rows of the subset Ties belong together by it.
        num_correct (number, optional): how many right answers there are.
        total_completions (number, optional): how many answers there are.

    Right answers are rated 1 and wrong ones 0, so that those of one kind are tied.

    Traps:
        - chosen and rejected are lists, even where they hold one text.
        - The subset Ties has several right answers and a scoring rule of its own.
        - A benchmark is for evaluation: training on it makes its numbers worthless.

    Licence:
        ODC-BY; see its card.

    Args:
        row: One row.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of all answers, the right ones first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT, BAD_LABEL (an empty list, or a count that the lists
            contradict), EMPTY, IDENTICAL.

    Example:
        >>> row = {"id": "1", "prompt": "2+2?", "chosen": ["4"], "rejected": ["5", "6", "7"], "subset": "Math"}
        >>> group = reward_bench_2_map_fn(row)
        >>> [answer[0]["content"] for answer in group.responses]
        ['4', '5', '6', '7']
        >>> group.ratings
        (1.0, 0.0, 0.0, 0.0)
    """
    prompt = question_of(row, "prompt")
    answers, names, values = _listed(row)
    counts = {"num_correct": int(sum(values)), "total_completions": len(values)}
    for name, found in counts.items():
        if row.get(name) is not None and integer_of(row[name], name, range(1, 1001)) != found:
            raise RowError(Reason.BAD_LABEL, f"{name} is {row[name]}, but chosen and rejected hold {found}")
    return group_of(prompt, answers, names, ratings=values, meta=meta_of(row), empty=empty)


@MAP_FNS.register_module()
def rm_bench_map_fn(row: Mapping[str, Any], *, empty: Literal["drop", "keep"] = "drop") -> Group:
    """A prompt with three right and three wrong answers in three styles: THU-KEG/RM-Bench.

    Columns:
        prompt (text): the user's turn.
        chosen (list of texts): right answers, concise, detailed, and detailed with markdown.
        rejected (list of texts): wrong answers in the same styles.
        subset (text, optional): what is tested; passed on.
        id (number, optional): passed on.

    Right answers are rated 1 and wrong ones 0, so that those of one kind are tied.

    Traps:
        - The six texts are compared three by three, across styles, not as three pairs.
        - A benchmark is for evaluation: training on it makes its numbers worthless.

    Licence:
        ODC-BY.

    Args:
        row: One row.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of all six answers, the right ones first, in the order of the styles.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT, BAD_LABEL (not three of each), EMPTY, IDENTICAL.

    Example:
        >>> row = {"id": 8, "prompt": "Q", "chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"]}
        >>> group = rm_bench_map_fn(row)
        >>> [answer[0]["content"] for answer in group.responses]
        ['c0', 'c1', 'c2', 'r0', 'r1', 'r2']
        >>> group.ratings
        (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    """
    prompt = question_of(row, "prompt")
    answers, names, values = _listed(row)
    for side in _SIDES:
        if len(row[side]) != 3:
            raise RowError(Reason.BAD_LABEL, f"{side} holds {len(row[side])} answers; expected 3, one of each style")
    return group_of(prompt, answers, names, ratings=values, meta=meta_of(row), empty=empty)
