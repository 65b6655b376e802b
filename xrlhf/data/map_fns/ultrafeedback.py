"""UltraFeedback: its ratings of four answers, and the pairs that others made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.conversations import scored_conversations
from xrlhf.data.map_fns.messages import (
    check_choice,
    column,
    meta_of,
    objects_of,
    question_of,
    ranked_group,
    rating_of,
    text_of,
)
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group

__all__ = ["ultrafeedback_binarized_map_fn", "ultrafeedback_cleaned_map_fn", "ultrafeedback_map_fn"]

_SIDES = ("chosen", "rejected")
_ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
_RATINGS = ("overall", "mean", *_ASPECTS)


@MAP_FNS.register_module()
def ultrafeedback_binarized_map_fn(
    row: Mapping[str, Any],
    *,
    ratings: bool = False,
    different_turns: Literal["keep", "drop"] = "keep",
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
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
        - The scores of some pairs are equal: with ``ratings=True`` these rows are dropped as ties, unless
          ``ties="keep"``.
        - The splits train_sft and train_gen have the same columns but are meant for other training.

    Licence:
        MIT.

    Args:
        row: One row.
        ratings: Whether the scores become the ratings of the group, from which a loss may take a margin.
        different_turns: ``"drop"`` leaves rows out whose conversations part before their last message.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows out whose ratings are equal, ``"keep"`` keeps them with equal ratings.

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
    return scored_conversations(row, _SIDES, scores if ratings else None, different_turns, empty, ties)


@MAP_FNS.register_module()
def ultrafeedback_cleaned_map_fn(
    row: Mapping[str, Any],
    *,
    ratings: bool = False,
    different_turns: Literal["keep", "drop"] = "keep",
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
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
        - With ``ratings=True`` rows with equal ratings are dropped as ties, unless ``ties="keep"``.

    Licence:
        MIT.

    Args:
        row: One row.
        ratings: Whether the ratings become the ratings of the group, from which a loss may take a margin.
        different_turns: ``"drop"`` leaves rows out whose conversations part before their last message.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows out whose ratings are equal, ``"keep"`` keeps them with equal ratings.

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
    scores = ("chosen-rating", "rejected-rating") if ratings else None
    return scored_conversations(row, _SIDES, scores, different_turns, empty, ties)


@MAP_FNS.register_module()
def ultrafeedback_map_fn(
    row: Mapping[str, Any],
    *,
    rating: Literal["overall", "mean", "helpfulness", "honesty", "instruction_following", "truthfulness"],
    unrated: Literal["drop", "leave_out"] = "drop",
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
) -> Group:
    """An instruction and its answers with ratings of four qualities: openbmb/UltraFeedback.

    Columns:
        instruction (text): the user's turn.
        completions (list): answers, each with response (text), overall_score (number), and annotations of helpfulness,
            honesty, instruction_following and truthfulness, each with a Rating of 1 to 5.
        source (text, optional): where the instruction comes from; passed on.

    The four ratings become the attributes of the group, NaN where an answer has none.

    Traps:
        - There are several ratings and no one order: the caller says which rating decides.
        - overall_score was given apart from the four and contradicts them in places; that is why cleaned pairs use the
          mean of the four.
        - A Rating is text in the file ("4"), and some say "N/A": such an answer has no rating.

    Licence:
        MIT.

    Args:
        row: One row.
        rating: What decides the order and becomes the ratings of the group: ``"overall"`` for overall_score, ``"mean"``
            for the mean of the four, or one of them.
        unrated: What happens where an answer lacks that rating: ``"drop"`` leaves the row out, ``"leave_out"`` the
            answer, and the row if fewer than two are left.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows out whose answers are all rated alike, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of all rated answers, the best first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT, BAD_LABEL (a rating outside 1 to 5, a score that is no number),
            UNRATED, BELOW_MINIMUM (fewer than two answers), EMPTY, IDENTICAL, TIE.

    Example:
        >>> def rated(text, *ratings):
        ...     names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
        ...     notes = {name: {"Rating": rating} for name, rating in zip(names, ratings)}
        ...     return {"response": text, "overall_score": 5.0, "annotations": notes}
        >>> group = ultrafeedback_map_fn({
        ...     "instruction": "2+2?",
        ...     "completions": [rated("5", "1", "2", "4", "1"), rated("4", "5", "N/A", "5", "5")],
        ... }, rating="helpfulness")
        >>> [answer[0]["content"] for answer in group.responses], group.ratings
        (['4', '5'], (5.0, 1.0))
        >>> group.attributes["honesty"]
        (nan, 2.0)
    """
    check_choice("rating", rating, _RATINGS)
    check_choice("unrated", unrated, ("drop", "leave_out"))
    prompt = question_of(row, "instruction")
    completions = objects_of(column(row, "completions"), "completions", "completions")
    if len(completions) < 2:
        raise RowError(Reason.BELOW_MINIMUM, f"completions holds {len(completions)} answers; expected 2 or more")
    names = [f"completions[{index}]" for index in range(len(completions))]
    answers = [
        [{"role": "assistant", "content": text_of(item.get("response"), f"{name}.response")}]
        for item, name in zip(completions, names, strict=True)
    ]
    attributes = {
        aspect: [_aspect_of(item, aspect, name) for item, name in zip(completions, names, strict=True)]
        for aspect in _ASPECTS
    }
    if rating == "overall":
        values = [
            math.nan if item.get("overall_score") is None else rating_of(item["overall_score"], f"{name}.overall_score")
            for item, name in zip(completions, names, strict=True)
        ]
    elif rating == "mean":
        values = [sum(four) / 4 for four in zip(*attributes.values(), strict=True)]
    else:
        values = attributes[rating]
    rated = [index for index, value in enumerate(values) if not math.isnan(value)]
    if unrated == "drop" and len(rated) < len(values):
        missing = next(name for name, value in zip(names, values, strict=True) if math.isnan(value))
        in_row_order = Group(prompt, tuple(answers), attributes={n: tuple(given) for n, given in attributes.items()})
        raise RowError(Reason.UNRATED, f"{missing} has no rating of {rating}", in_row_order)
    if len(rated) < 2:
        raise RowError(Reason.BELOW_MINIMUM, f"{len(rated)} answers have a rating of {rating}; expected 2 or more")
    return ranked_group(
        prompt,
        [answers[index] for index in rated],
        [names[index] for index in rated],
        [values[index] for index in rated],
        ratings=True,
        attributes={name: [given[index] for index in rated] for name, given in attributes.items()},
        meta=meta_of(row),
        empty=empty,
        ties=ties,
    )


def _aspect_of(completion: Mapping[str, Any], aspect: str, where: str) -> float:
    """The rating of one quality of one answer; NaN where it says that there is none."""
    annotations = completion.get("annotations")
    if not isinstance(annotations, Mapping):
        raise RowError(Reason.WRONG_TYPE, f"{where}.annotations is {kind_of(annotations)}; expected an object")
    note = annotations.get(aspect)
    if not isinstance(note, Mapping):
        raise RowError(Reason.WRONG_TYPE, f"{where}.annotations.{aspect} is {kind_of(note)}; expected an object")
    value = note.get("Rating")
    if value is None or value == "N/A":
        return math.nan
    if isinstance(value, str) and value in ("1", "2", "3", "4", "5"):
        return float(value)
    found = rating_of(value, f"{where}.annotations.{aspect}.Rating")
    if not 1 <= found <= 5:
        raise RowError(Reason.BAD_LABEL, f"{where}.annotations.{aspect}.Rating is {found:g}; expected 1 to 5 or 'N/A'")
    return found
