"""General layouts: a prompt with its answers, plain text, whole conversations, ranked lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import (
    check_answer,
    check_choice,
    check_messages,
    check_prompt,
    column,
    group_of,
    meta_of,
    ranked_group,
    rating_of,
    split_conversations,
    text_of,
    with_system,
)
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group

__all__ = [
    "conversation_pair_map_fn",
    "pair_map_fn",
    "ranked_map_fn",
    "split_conversation_columns",
    "text_pair_map_fn",
]


@MAP_FNS.register_module()
def pair_map_fn(
    row: Mapping[str, Any],
    *,
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    system_column: str | None = None,
    margin_column: str | None = "margin",
    score_columns: tuple[str, str] | None = None,
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
) -> Group:
    """A prompt, a better and a worse answer: XTuner's own rows, TRL's conversational rows, and most home-made sets.

    Columns:
        prompt (text or messages): text becomes one user message; messages end with the user or a tool.
        chosen (text or messages): the better answer; text becomes one assistant message.
        rejected (text or messages): the worse answer.
        margin (number, optional): by how much the chosen answer is better, 0 or more.

    Traps:
        - Answers that repeat the prompt are whole conversations: ``conversation_pair_map_fn`` reads those.
        - TRL's rows of three texts are continuations without roles: ``text_pair_map_fn`` reads those as such.
        - A margin of 0 says that neither answer is better, which is a tie, dropped unless ``ties="keep"``. Where 0 only
          means a slight preference, set ``margin_column=None``.

    Licence:
        That of the set.

    Args:
        row: One row.
        prompt_column: Name of the prompt's column, where it has another one.
        chosen_column: Name of the better answer's column.
        rejected_column: Name of the worse answer's column.
        system_column: Name of a column with a system text to put before the prompt; blank text puts none.
        margin_column: Name of the margin's column, used where a row has it; None to ignore it. The group is rated
            ``(margin, 0)``.
        score_columns: Names of the columns that rate the chosen and the rejected answer, which every row then needs.
            They take the place of the margin.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows out whose answers are rated alike, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT, BAD_LABEL (a margin below 0, scores against the
            order), EMPTY, IDENTICAL, TIE.

    Example:
        >>> group = pair_map_fn({"prompt": "Name a fruit.", "chosen": "An apple.", "rejected": "A brick.", "margin": 2})
        >>> group.prompt
        [{'role': 'user', 'content': 'Name a fruit.'}]
        >>> group.responses
        ([{'role': 'assistant', 'content': 'An apple.'}], [{'role': 'assistant', 'content': 'A brick.'}])
        >>> group.ratings
        (2.0, 0.0)
    """
    names = (chosen_column, rejected_column)
    prompt = check_prompt(column(row, prompt_column), prompt_column)
    prompt = with_system(prompt, row, system_column, prompt_column)
    answers = [check_answer(column(row, name), name) for name in names]
    ratings = _scores(row, score_columns) if score_columns is not None else _margin(row, margin_column)
    return group_of(
        prompt, answers, names, ratings=ratings, rating_names=score_columns, meta=meta_of(row), empty=empty, ties=ties
    )


def _scores(row: Mapping[str, Any], columns: tuple[str, str]) -> tuple[float, float]:
    chosen, rejected = columns
    return rating_of(column(row, chosen), chosen), rating_of(column(row, rejected), rejected)


@MAP_FNS.register_module()
def text_pair_map_fn(
    row: Mapping[str, Any],
    *,
    prompt_column: str | None = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    margin_column: str | None = "margin",
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
) -> Group:
    """Plain text without roles: TRL's standard rows with a prompt (explicit) or without (implicit).

    Columns:
        prompt (text, optional): what both texts continue; without it they stand alone.
        chosen (text): the better continuation, or the better whole text.
        rejected (text): the worse one.
        margin (number, optional): by how much the chosen text is better, 0 or more.

    Nothing is put between prompt and continuation, and no chat template is used: a blank at the start of a
    continuation is part of it.

    Traps:
        - Without a prompt there is no answer to look at on its own: losses over log-probabilities of answers compare
          the whole texts then.
        - A margin of 0 is a tie, as in ``pair_map_fn``.

    Licence:
        That of the set.

    Args:
        row: One row.
        prompt_column: Name of the prompt's column; None where the texts are whole though a prompt column exists.
        chosen_column: Name of the better text's column.
        rejected_column: Name of the worse text's column.
        margin_column: Name of the margin's column, used where a row has it; None to ignore it.
        empty: ``"drop"`` leaves rows with a blank continuation out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows out whose answers are rated alike, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of chosen and rejected text.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, BAD_LABEL (a margin below 0), EMPTY, IDENTICAL, TIE.

    Example:
        >>> group = text_pair_map_fn({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."})
        >>> group.prompt, group.responses
        ('The sky is', (' blue.', ' green.'))
    """
    names = (chosen_column, rejected_column)
    prompt = "" if prompt_column is None or prompt_column not in row else text_of(row[prompt_column], prompt_column)
    answers = [text_of(column(row, name), name) for name in names]
    ratings = _margin(row, margin_column)
    return group_of(prompt, answers, names, ratings=ratings, meta=meta_of(row), empty=empty, ties=ties)


def _margin(row: Mapping[str, Any], name: str | None) -> tuple[float, float] | None:
    """Ratings ``(margin, 0)`` where the row has a margin."""
    if name is None or row.get(name) is None:
        return None
    margin = rating_of(row[name], name)
    if margin < 0:
        raise RowError(Reason.BAD_LABEL, f"{name} is {margin:g}; expected 0 or more")
    return margin, 0.0


@MAP_FNS.register_module()
def conversation_pair_map_fn(
    row: Mapping[str, Any],
    *,
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    score_columns: tuple[str, str] | None = ("chosen_score", "rejected_score"),
    margin_column: str | None = "margin",
    different_turns: Literal["keep", "drop"] = "keep",
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
) -> Group:
    """Two whole conversations with the prompt inside: RLHFlow's standard sets, Skywork, TRL's implicit prompts.

    Columns:
        chosen (messages): the better conversation, from its first message to the answer.
        rejected (messages): the worse conversation.
        chosen_score (number, optional): rating of the chosen answer.
        rejected_score (number, optional): rating of the rejected answer.
        margin (number, optional): by how much the chosen answer is better, where there are no scores.

    The prompt is the run of messages that both sides share, up to the last one in it by the user or a tool. Text
    columns beside the conversations (``prompt``, ``question``) are ignored: they often hold the last turn only.

    Traps:
        - Some conversations part before their last message. The answers are several messages then, and hold turns of
          the user; ``different_turns="drop"`` leaves such rows out.
        - Rows with equal scores are dropped as ties unless ``ties="keep"``; ``score_columns=None`` takes no notice of
          scores.

    Licence:
        That of the set.

    Args:
        row: One row.
        chosen_column: Name of the better conversation's column.
        rejected_column: Name of the worse conversation's column.
        score_columns: Names of the columns that rate chosen and rejected, used where a row has both; None to ignore
            them.
        margin_column: Name of the margin's column, used where a row has it and no scores; None to ignore it.
        different_turns: ``"drop"`` leaves rows out whose conversations part before their last message.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows out whose answers are rated alike, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT (nothing shared), BAD_LABEL (scores against the
            order, a margin below 0), EMPTY, IDENTICAL, TIE, DIFFERENT_TURNS.

    Example:
        >>> group = conversation_pair_map_fn({
        ...     "chosen": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
        ...     "rejected": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "5"}],
        ...     "chosen_score": 3.0,
        ...     "rejected_score": 1.0,
        ... })
        >>> group.prompt
        [{'role': 'user', 'content': '2+2?'}]
        >>> group.responses
        ([{'role': 'assistant', 'content': '4'}], [{'role': 'assistant', 'content': '5'}])
        >>> group.ratings
        (3.0, 1.0)
    """
    names = (chosen_column, rejected_column)
    scored = score_columns is not None and any(row.get(name) is not None for name in score_columns)
    ratings = _scores(row, score_columns) if scored and score_columns else _margin(row, margin_column)
    prompt, answers = split_conversation_columns(row, names, different_turns=different_turns)
    return group_of(
        prompt, answers, names, ratings=ratings, rating_names=score_columns, meta=meta_of(row), empty=empty, ties=ties
    )


def split_conversation_columns(
    row: Mapping[str, Any], names: tuple[str, str], *, different_turns: str = "keep"
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """The shared prompt and the answers of columns that hold whole conversations.

    Raises:
        RowError: The columns are missing or hold no such conversations, or DIFFERENT_TURNS where that is asked for.
    """
    check_choice("different_turns", different_turns, ("keep", "drop"))
    conversations = []
    for name in names:
        value = column(row, name)
        if isinstance(value, str):
            raise RowError(
                Reason.WRONG_TYPE,
                f"{name} is text; expected a list of messages (pair_map_fn and hh_map_fn read texts)",
            )
        conversations.append(check_messages(value, name))
    prompt, answers = split_conversations(conversations, names)
    if different_turns == "drop" and any(len(answer) > 1 for answer in answers):
        longest = max(len(answer) for answer in answers)
        raise RowError(
            Reason.DIFFERENT_TURNS, f"{' and '.join(names)} part {longest} messages before the end; expected 1"
        )
    return prompt, answers


@MAP_FNS.register_module()
def ranked_map_fn(
    row: Mapping[str, Any],
    *,
    prompt_column: str = "prompt",
    responses_column: str = "responses",
    ratings_column: str | None = "ratings",
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
) -> Group:
    """A prompt with two or more answers, in order or with ratings.

    Columns:
        prompt (text or messages): text becomes one user message; messages end with the user or a tool.
        responses (list): answers, each text or messages; the best first, unless they are rated.
        ratings (list of numbers, optional): one for each answer, higher is better; they decide the order.

    Traps:
        - Without ratings the order is all there is: a list in arbitrary order would be learnt as a ranking.
        - Equal ratings are ties between these answers, and their order stays as it was; a row whose answers are all
          rated alike is dropped unless ``ties="keep"``.

    Licence:
        That of the set.

    Args:
        row: One row.
        prompt_column: Name of the prompt's column.
        responses_column: Name of the answers' column.
        ratings_column: Name of the ratings' column, used where a row has it; None to ignore it.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows out whose answers are rated alike, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of all answers, the best first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT, BAD_LABEL (a rating that is no number),
            BELOW_MINIMUM (fewer than two answers), EMPTY, IDENTICAL, TIE.

    Example:
        >>> group = ranked_map_fn({"prompt": "2+2?", "responses": ["5", "4", "22"], "ratings": [2, 5, 1]})
        >>> [answer[0]["content"] for answer in group.responses], group.ratings
        (['4', '5', '22'], (5.0, 2.0, 1.0))
    """
    prompt = check_prompt(column(row, prompt_column), prompt_column)
    values = column(row, responses_column)
    if not isinstance(values, (list, tuple)):
        raise RowError(Reason.WRONG_TYPE, f"{responses_column} is {kind_of(values)}; expected a list of answers")
    names = [f"{responses_column}[{index}]" for index in range(len(values))]
    answers = [check_answer(value, name) for value, name in zip(values, names, strict=True)]
    if len(answers) < 2:
        raise RowError(Reason.BELOW_MINIMUM, f"{responses_column} holds {len(answers)} answers; expected 2 or more")
    if ratings_column is None or row.get(ratings_column) is None:
        return group_of(prompt, answers, names, meta=meta_of(row), empty=empty, ties=ties)
    given = _ratings(row[ratings_column], ratings_column, len(answers))
    return ranked_group(prompt, answers, names, given, ratings=True, meta=meta_of(row), empty=empty, ties=ties)


def _ratings(value: Any, where: str, num_answers: int) -> list[float]:
    if not isinstance(value, (list, tuple)):
        raise RowError(Reason.WRONG_TYPE, f"{where} is {kind_of(value)}; expected a list of numbers")
    if len(value) != num_answers:
        raise RowError(Reason.BAD_LABEL, f"{where} holds {len(value)} numbers for {num_answers} answers")
    return [rating_of(item, f"{where}[{index}]") for index, item in enumerate(value)]
