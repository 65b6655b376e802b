"""UltraFeedback turned into pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import column, group_of, meta_of, rating_of
from xrlhf.data.map_fns.pairs import split_conversation_columns
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group

__all__ = ["ultrafeedback_binarized_map_fn", "ultrafeedback_cleaned_map_fn"]


@MAP_FNS.register_module()
def ultrafeedback_binarized_map_fn(
    row: Mapping[str, Any],
    *,
    ratings: bool = False,
    different_turns: Literal["keep", "drop"] = "keep",
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    """Two scored conversations: HuggingFaceH4/ultrafeedback_binarized (splits train_prefs and test_prefs).

    Columns:
        prompt (text): the first user turn; ignored, since the conversations hold it.
        prompt_id (text): passed on.
        chosen (messages): the better conversation.
        rejected (messages): the worse conversation.
        score_chosen (number): score of the better answer.
        score_rejected (number): score of the worse answer.

    Traps:
        - The scores of some pairs are equal: with ``ratings=True`` these rows are dropped as ties.
        - The splits train_sft and train_gen have the same columns but are meant for other training.

    Licence:
        MIT.

    Args:
        row: One row.
        ratings: Whether the scores become the ratings of the group, from which a loss may take a margin.
        different_turns: ``"drop"`` leaves rows out whose conversations part before their last message.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT, BAD_LABEL (a score that is no number, or scores
            against the order), EMPTY, IDENTICAL, TIE, DIFFERENT_TURNS.

    Example:
        >>> group = ultrafeedback_binarized_map_fn({
        ...     "prompt": "Name a colour.",
        ...     "chosen": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}],
        ...     "rejected": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Seven."}],
        ...     "score_chosen": 8.5,
        ...     "score_rejected": 4.0,
        ... }, ratings=True)
        >>> group.prompt
        [{'role': 'user', 'content': 'Name a colour.'}]
        >>> [answer[0]["content"] for answer in group.responses], group.ratings
        (['Blue.', 'Seven.'], (8.5, 4.0))
    """
    scores = ("score_chosen", "score_rejected")
    return _scored_pair(row, scores if ratings else None, different_turns, empty)


@MAP_FNS.register_module()
def ultrafeedback_cleaned_map_fn(
    row: Mapping[str, Any],
    *,
    ratings: bool = False,
    different_turns: Literal["keep", "drop"] = "keep",
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    """Two rated conversations: argilla/ultrafeedback-binarized-preferences-cleaned.

    Columns:
        source (text): where the prompt comes from; passed on.
        prompt (text): ignored, since the conversations hold it.
        chosen (messages): the better conversation.
        chosen-rating (number): mean rating of the better answer.
        chosen-model (text): who wrote it; ignored.
        rejected (messages): the worse conversation.
        rejected-rating (number): mean rating of the worse answer.
        rejected-model (text): who wrote it; ignored.

    Traps:
        - The names of the rating columns have hyphens.
        - With ``ratings=True`` rows with equal ratings are dropped as ties.

    Licence:
        MIT.

    Args:
        row: One row.
        ratings: Whether the ratings become the ratings of the group, from which a loss may take a margin.
        different_turns: ``"drop"`` leaves rows out whose conversations part before their last message.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT, BAD_LABEL (a rating that is no number, or ratings
            against the order), EMPTY, IDENTICAL, TIE, DIFFERENT_TURNS.

    Example:
        >>> group = ultrafeedback_cleaned_map_fn({
        ...     "source": "sharegpt",
        ...     "chosen": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}],
        ...     "chosen-rating": 5.0,
        ...     "rejected": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Seven."}],
        ...     "rejected-rating": 2.25,
        ... }, ratings=True)
        >>> group.prompt
        [{'role': 'user', 'content': 'Name a colour.'}]
        >>> [answer[0]["content"] for answer in group.responses], group.ratings, group.meta
        (['Blue.', 'Seven.'], (5.0, 2.25), {'source': 'sharegpt'})
    """
    return _scored_pair(row, ("chosen-rating", "rejected-rating") if ratings else None, different_turns, empty)


def _scored_pair(
    row: Mapping[str, Any], score_columns: tuple[str, str] | None, different_turns: str, empty: str
) -> Group:
    names = ("chosen", "rejected")
    prompt, answers = split_conversation_columns(row, names, different_turns=different_turns)
    ratings = None if score_columns is None else [rating_of(column(row, name), name) for name in score_columns]
    return group_of(prompt, answers, names, ratings=ratings, rating_names=score_columns, meta=meta_of(row), empty=empty)
