"""Benchmarks of judges: two answers and a verdict, each with a code of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.alpaca import alpaca_prompt
from xrlhf.data.map_fns.messages import answers_of, column, integer_of, meta_of, question_of, ranked_group
from xrlhf.data.reasons import Reason, RowError, short
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group, Message

__all__ = ["autoj_map_fn", "judgebench_map_fn", "llmbar_map_fn", "pandalm_map_fn"]


def _judged(
    row: Mapping[str, Any],
    prompt: list[Message],
    names: tuple[str, str],
    better: int | None,
    meta: Mapping[str, Any],
    empty: str,
    ties: str = "drop",
) -> Group:
    """The group of two answers; ``better`` is the place of the better one, None for a tie."""
    values = [float(index == better) for index in range(2)]
    return ranked_group(prompt, answers_of(row, names), names, values, meta=meta, empty=empty, ties=ties)


@MAP_FNS.register_module()
def llmbar_map_fn(row: Mapping[str, Any], *, empty: Literal["drop", "keep"] = "drop") -> Group:
    """An instruction and two outputs, one of which follows it: princeton-nlp/LLMBar.

    Columns:
        input (text): the user's turn.
        output_1 (text): the first answer.
        output_2 (text): the second answer.
        label (number): 1 or 2, which output is better.

    Traps:
        - The label counts from 1; 0 is refused.
        - A benchmark is for evaluation: training on it makes its numbers worthless.

    Licence:
        MIT.

    Args:
        row: One row.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of both outputs, the better first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT, BAD_LABEL (a label other than 1 and 2), EMPTY, IDENTICAL.

    Example:
        >>> row = {"input": "Name a fruit.", "output_1": "A brick.", "output_2": "Apple.", "label": 2}
        >>> group = llmbar_map_fn(row)
        >>> group.responses
        ([{'role': 'assistant', 'content': 'Apple.'}], [{'role': 'assistant', 'content': 'A brick.'}])
    """
    better = integer_of(column(row, "label"), "label", (1, 2)) - 1
    return _judged(row, question_of(row, "input"), ("output_1", "output_2"), better, meta_of(row), empty)


@MAP_FNS.register_module()
def judgebench_map_fn(row: Mapping[str, Any], *, empty: Literal["drop", "keep"] = "drop") -> Group:
    """A question and two answers, one of which is correct: ScalerLab/JudgeBench.

    Columns:
        question (text): the user's turn.
        response_A (text): the first answer.
        response_B (text): the second answer.
        label (text): "A>B" or "B>A".
        pair_id (text, optional): passed on.
        original_id (number, optional): passed on.
        source (text, optional): where the question comes from; passed on.
        response_model (text, optional): who wrote the answers; passed on.

    Traps:
        - The label is one of two texts; anything else is refused.
        - A benchmark is for evaluation: training on it makes its numbers worthless.

    Licence:
        MIT.

    Args:
        row: One row.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of both answers, the better first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT, BAD_LABEL, EMPTY, IDENTICAL.

    Example:
        >>> group = judgebench_map_fn({"question": "2+2?", "response_A": "5", "response_B": "4", "label": "B>A"})
        >>> group.responses
        ([{'role': 'assistant', 'content': '4'}], [{'role': 'assistant', 'content': '5'}])
    """
    label = column(row, "label")
    if label not in ("A>B", "B>A"):
        raise RowError(Reason.BAD_LABEL, f"label is {short(label)}; expected 'A>B' or 'B>A'")
    meta = meta_of(row, "pair_id", "original_id", "response_model")
    names = ("response_A", "response_B")
    return _judged(row, question_of(row, "question"), names, int(label == "B>A"), meta, empty)


@MAP_FNS.register_module()
def pandalm_map_fn(
    row: Mapping[str, Any], *, empty: Literal["drop", "keep"] = "drop", ties: Literal["drop", "keep"] = "drop"
) -> Group:
    r"""An instruction and two answers judged by three people: WeOpenML/PandaLM, testset-v1.

    Columns:
        instruction (text): the user's turn.
        input (text): what follows the instruction behind a newline; nothing does where it is empty.
        response1 (text): the first answer.
        response2 (text): the second answer.
        annotator1 (number): 1 or 2, the better answer; 0 for a tie.
        annotator2 (number): as annotator1.
        annotator3 (number): as annotator1.
        idx (number, optional): passed on.
        motivation_app (text, optional): passed on.
        cmp_key (text, optional): passed on.

    What two of three say is the verdict; where all differ it is a tie.

    Traps:
        - Some answers are JSON booleans where a text was meant; they become "True" and "False".
        - 0 is a tie, not the first answer.

    Licence:
        Apache-2.0.

    Args:
        row: One row.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows without a better answer out, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of both answers, the better first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT, BAD_LABEL (a verdict other than 0, 1 and 2), EMPTY, IDENTICAL,
            TIE.

    Example:
        >>> group = pandalm_map_fn({
        ...     "instruction": "Verify",
        ...     "input": "1+1=3",
        ...     "response1": False,
        ...     "response2": "True.",
        ...     "annotator1": 1,
        ...     "annotator2": 1,
        ...     "annotator3": 0,
        ... })
        >>> group.prompt
        [{'role': 'user', 'content': 'Verify\n1+1=3'}]
        >>> group.responses
        ([{'role': 'assistant', 'content': 'False'}], [{'role': 'assistant', 'content': 'True.'}])
    """
    votes = [integer_of(column(row, name), name, (0, 1, 2)) for name in ("annotator1", "annotator2", "annotator3")]
    verdict, count = Counter(votes).most_common(1)[0]
    better = verdict - 1 if count >= 2 and verdict else None
    meta = meta_of(row, "idx", "motivation_app", "cmp_key")
    return _judged(row, alpaca_prompt(row), ("response1", "response2"), better, meta, empty, ties)


@MAP_FNS.register_module()
def autoj_map_fn(
    row: Mapping[str, Any], *, empty: Literal["drop", "keep"] = "drop", ties: Literal["drop", "keep"] = "drop"
) -> Group:
    """A prompt and two answers by scenario: GAIR-NLP/auto-j, its pairwise test.

    Columns:
        prompt (text): the user's turn.
        response 1 (text): the first answer; there is a blank in the name.
        response 2 (text): the second answer.
        label (number): 0 where the first answer is better, 1 where the second is, 2 for a tie.
        scenario (text, optional): passed on.

    Traps:
        - The names of the answers have blanks, and the label counts from 0.
        - The file holds one object a line although its name ends in .json.

    Licence:
        Apache-2.0.

    Args:
        row: One row.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows with label 2 out, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of both answers, the better first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT, BAD_LABEL (a label other than 0, 1 and 2), EMPTY, IDENTICAL,
            TIE.

    Example:
        >>> group = autoj_map_fn({"prompt": "2+2?", "response 1": "5", "response 2": "4", "label": 1})
        >>> group.responses
        ([{'role': 'assistant', 'content': '4'}], [{'role': 'assistant', 'content': '5'}])
    """
    label = integer_of(column(row, "label"), "label", (0, 1, 2))
    better = None if label == 2 else label
    meta = meta_of(row, "scenario")
    return _judged(row, question_of(row, "prompt"), ("response 1", "response 2"), better, meta, empty, ties)
