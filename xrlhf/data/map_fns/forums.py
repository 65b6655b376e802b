"""Answers of forums, compared by the votes they got."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import answers_of, column, group_of, integer_of, meta_of, question_of, rating_of
from xrlhf.data.reasons import Reason, RowError
from xrlhf.errors import ConfigError
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group

__all__ = ["shp_map_fn", "stack_exchange_paired_map_fn"]


@MAP_FNS.register_module()
def shp_map_fn(
    row: Mapping[str, Any],
    *,
    min_ratio: float | None = None,
    ratings: bool = False,
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
) -> Group:
    """A Reddit post and two comments with their votes: stanfordnlp/SHP.

    Columns:
        history (text): the post, which becomes the user's turn.
        human_ref_A (text): the first comment.
        human_ref_B (text): the second comment.
        labels (number): 1 where A is preferred, 0 where B is.
        score_ratio (number, optional): the votes of the better comment over those of the worse one; read for min_ratio.
        score_A (number, optional): votes of A; read for ratings.
        score_B (number, optional): votes of B; read for ratings.
        post_id (text, optional): passed on; a post has many pairs.
        domain (text, optional): forum and split; passed on.

    Traps:
        - labels is not the index of the better answer: 0 means B.
        - A ratio close to 1 says little; RLHFlow keeps ratios above 2.
        - A post has many pairs; folds keep the rows of a prompt together.

    Licence:
        See its card: Reddit's terms of use for the texts.

    Args:
        row: One row.
        min_ratio: Leave out rows with a smaller score_ratio, 1 or more; None keeps all.
        ratings: Whether the votes become the ratings of the group, from which a loss may take a margin.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows out whose ratings are equal, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of both comments, the preferred one first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT (a blank post), BAD_LABEL (labels other than 0 and 1, votes
            against them), BELOW_MINIMUM, EMPTY, IDENTICAL, TIE.

    Example:
        >>> group = shp_map_fn({
        ...     "history": "Why does bread rise?",
        ...     "human_ref_A": "Magic.",
        ...     "human_ref_B": "Yeast makes gas.",
        ...     "score_A": 10,
        ...     "score_B": 30,
        ...     "score_ratio": 3.0,
        ...     "labels": 0,
        ... }, min_ratio=2, ratings=True)
        >>> group.responses
        ([{'role': 'assistant', 'content': 'Yeast makes gas.'}], [{'role': 'assistant', 'content': 'Magic.'}])
        >>> group.ratings
        (30.0, 10.0)
    """
    if min_ratio is not None and min_ratio < 1:
        raise ConfigError(f"map function option min_ratio={min_ratio!r}; expected 1 or more")
    names, score_names = ["human_ref_A", "human_ref_B"], ["score_A", "score_B"]
    better = 1 - integer_of(column(row, "labels"), "labels", (0, 1))
    prompt, answers = question_of(row, "history"), answers_of(row, names)
    if min_ratio is not None:
        ratio = rating_of(column(row, "score_ratio"), "score_ratio")
        if ratio < min_ratio:
            raise RowError(Reason.BELOW_MINIMUM, f"score_ratio is {ratio:g}; min_ratio is {min_ratio:g}")
    order = [better, 1 - better]
    score_names = [score_names[index] for index in order]
    return group_of(
        prompt,
        [answers[index] for index in order],
        [names[index] for index in order],
        ratings=[rating_of(column(row, name), name) for name in score_names] if ratings else None,
        rating_names=score_names,
        row_order=order,
        meta=meta_of(row, "post_id", "domain"),
        empty=empty,
        ties=ties,
    )


@MAP_FNS.register_module()
def stack_exchange_paired_map_fn(row: Mapping[str, Any], *, empty: Literal["drop", "keep"] = "drop") -> Group:
    """A question and two answers: lvwerra/stack-exchange-paired.

    Columns:
        question (text): the user's turn.
        response_j (text): the better answer.
        response_k (text): the worse answer.
        qid (number, optional): number of the question; passed on.
        metadata (list, optional): links to the question, its site and its author, which the licence asks to name;
            passed on.

    Traps:
        - j is the better answer.
        - A question has many pairs; folds keep the rows of a prompt together.

    Licence:
        CC-BY-SA.

    Args:
        row: One row.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of the better and the worse answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT (a blank question), EMPTY, IDENTICAL.

    Example:
        >>> row = {"qid": 1, "question": "How?", "response_j": "Like so.", "response_k": "No idea."}
        >>> group = stack_exchange_paired_map_fn(row)
        >>> group.prompt
        [{'role': 'user', 'content': 'How?'}]
        >>> group.responses
        ([{'role': 'assistant', 'content': 'Like so.'}], [{'role': 'assistant', 'content': 'No idea.'}])
    """
    names = ("response_j", "response_k")
    prompt, answers = question_of(row, "question"), answers_of(row, names)
    return group_of(prompt, answers, names, meta=meta_of(row, "qid", "metadata"), empty=empty)
