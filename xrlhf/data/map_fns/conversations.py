"""Public sets of two whole conversations that hold the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import column, group_of, meta_of, rating_of
from xrlhf.data.map_fns.pairs import split_conversation_columns
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group

__all__ = [
    "llamafactory_v1_map_fn",
    "orpo_dpo_mix_40k_map_fn",
    "rlhflow_standard_map_fn",
    "scored_conversations",
    "skywork_map_fn",
]

_SIDES = ("chosen", "rejected")


def scored_conversations(
    row: Mapping[str, Any],
    names: tuple[str, str],
    score_columns: tuple[str, str] | None,
    different_turns: str,
    empty: str,
    ties: str = "drop",
) -> Group:
    """The group of two whole conversations.

    Args:
        row: One row.
        names: The columns of the better and the worse conversation.
        score_columns: The columns that become the ratings of the group, or None.
        different_turns: As in :func:`split_conversation_columns`.
        empty: As in :func:`group_of`.
        ties: As in :func:`group_of`.
    """
    prompt, answers = split_conversation_columns(row, names, different_turns=different_turns)
    ratings = None if score_columns is None else [rating_of(column(row, name), name) for name in score_columns]
    return group_of(
        prompt,
        answers,
        names,
        ratings=ratings,
        rating_names=score_columns,
        meta=meta_of(row),
        empty=empty,
        ties=ties,
    )


@MAP_FNS.register_module()
def orpo_dpo_mix_40k_map_fn(
    row: Mapping[str, Any],
    *,
    different_turns: Literal["keep", "drop"] = "keep",
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    """Two whole conversations of a mixture of sets: mlabonne/orpo-dpo-mix-40k.

    Columns:
        source (text): which set the row comes from; passed on.
        chosen (messages): the better conversation, from its first message to the answer.
        rejected (messages): the worse conversation.
        prompt (text): the last user turn alone; ignored.
        question (text): the last user turn alone; ignored.

    Traps:
        - Conversations of several turns: prompt and question hold the last turn of the user only.
        - Some conversations part before their last message; see conversation_pair_map_fn.

    Licence:
        Apache-2.0; the sets it is mixed from have their own.

    Args:
        row: One row.
        different_turns: ``"drop"`` leaves rows out whose conversations part before their last message.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT (nothing shared), EMPTY, IDENTICAL,
            DIFFERENT_TURNS.

    Example:
        >>> turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        >>> ask = {"role": "user", "content": "2+2?"}
        >>> group = orpo_dpo_mix_40k_map_fn({
        ...     "chosen": [*turns, ask, {"role": "assistant", "content": "4"}],
        ...     "rejected": [*turns, ask, {"role": "assistant", "content": "5"}],
        ...     "prompt": "2+2?",
        ... })
        >>> [message["content"] for message in group.prompt]
        ['Hi', 'Hello', '2+2?']
        >>> group.responses
        ([{'role': 'assistant', 'content': '4'}], [{'role': 'assistant', 'content': '5'}])
    """
    return scored_conversations(row, _SIDES, None, different_turns, empty)


@MAP_FNS.register_module()
def rlhflow_standard_map_fn(
    row: Mapping[str, Any],
    *,
    ratings: bool = False,
    different_turns: Literal["keep", "drop"] = "keep",
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
) -> Group:
    """Two whole conversations, scored in some sets: RLHFlow's standard sets and hendrydong/preference_700K.

    Columns:
        chosen (messages): the better conversation, from its first message to the answer.
        rejected (messages): the worse conversation.
        chosen_score (number, optional): score of the chosen answer; preference_700K has it.
        rejected_score (number, optional): score of the rejected answer.

    Traps:
        - Some conversations part before their last message; ``different_turns="drop"`` leaves such rows out.
        - The order of the columns differs from set to set.

    Licence:
        That of the set; most are mixtures of sets with licences of their own.

    Args:
        row: One row.
        ratings: Whether the scores become the ratings of the group, from which a loss may take a margin; every row
            then needs them.
        different_turns: ``"drop"`` leaves rows out whose conversations part before their last message.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows out whose ratings are equal, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT (nothing shared), BAD_LABEL (a score that is no
            number, or scores against the order), EMPTY, IDENTICAL, TIE, DIFFERENT_TURNS.

    Example:
        >>> group = rlhflow_standard_map_fn({
        ...     "rejected": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "5"}],
        ...     "rejected_score": 1.0,
        ...     "chosen_score": 3.0,
        ...     "chosen": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
        ... }, ratings=True)
        >>> group.responses
        ([{'role': 'assistant', 'content': '4'}], [{'role': 'assistant', 'content': '5'}])
        >>> group.ratings
        (3.0, 1.0)
    """
    scores = ("chosen_score", "rejected_score") if ratings else None
    return scored_conversations(row, _SIDES, scores, different_turns, empty, ties)


@MAP_FNS.register_module()
def skywork_map_fn(
    row: Mapping[str, Any],
    *,
    different_turns: Literal["keep", "drop"] = "keep",
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    """Two whole conversations and their origin: Skywork/Skywork-Reward-Preference-80K, v0.1 and v0.2.

    Columns:
        chosen (messages): the better conversation, from its first message to the answer.
        rejected (messages): the worse conversation.
        source (text): which set the row comes from; passed on.

    Traps:
        - v0.1 shares prompts with RewardBench; v0.2 is the cleaned set.
        - Some conversations part before their last message; see conversation_pair_map_fn.

    Licence:
        That of the sets it was gathered from; see its card.

    Args:
        row: One row.
        different_turns: ``"drop"`` leaves rows out whose conversations part before their last message.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT (nothing shared), EMPTY, IDENTICAL,
            DIFFERENT_TURNS.

    Example:
        >>> group = skywork_map_fn({
        ...     "chosen": [{"content": "2+2?", "role": "user"}, {"content": "4", "role": "assistant"}],
        ...     "rejected": [{"content": "2+2?", "role": "user"}, {"content": "5", "role": "assistant"}],
        ...     "source": "helpsteer2",
        ... })
        >>> group.responses
        ([{'role': 'assistant', 'content': '4'}], [{'role': 'assistant', 'content': '5'}])
        >>> group.meta
        {'source': 'helpsteer2'}
    """
    return scored_conversations(row, _SIDES, None, different_turns, empty)


@MAP_FNS.register_module()
def llamafactory_v1_map_fn(
    row: Mapping[str, Any],
    *,
    chosen_column: str = "chosen_messages",
    rejected_column: str = "rejected_messages",
    different_turns: Literal["keep", "drop"] = "keep",
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    """Two whole conversations of typed parts with loss weights: LLaMA-Factory's v1 pairs.

    Columns:
        chosen_messages (messages): the better conversation; content is a list of parts with type text and value, and
            each message may have a loss_weight.
        rejected_messages (messages): the worse conversation.

    Traps:
        - Text parts are joined as they are; parts of another type are refused.
        - loss_weight stays in the messages: 0 keeps a policy from learning a turn, and rewards do not read it. Messages
          that differ in it alone are not the same, so a prompt must be weighted alike on both sides.

    Licence:
        That of the set (the demo file of LLaMA-Factory: Apache-2.0).

    Args:
        row: One row.
        chosen_column: Name of the better conversation's column.
        rejected_column: Name of the worse conversation's column.
        different_turns: ``"drop"`` leaves rows out whose conversations part before their last message.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE (a part that is no text), WRONG_ROLES, NO_PROMPT (nothing shared), EMPTY,
            IDENTICAL, DIFFERENT_TURNS.

    Example:
        >>> def said(role, text, weight):
        ...     return {"role": role, "content": [{"type": "text", "value": text}], "loss_weight": weight}
        >>> group = llamafactory_v1_map_fn({
        ...     "chosen_messages": [said("user", "2+2?", 0.0), said("assistant", "4", 1.0)],
        ...     "rejected_messages": [said("user", "2+2?", 0.0), said("assistant", "5", 1.0)],
        ... })
        >>> group.prompt
        [{'role': 'user', 'content': '2+2?', 'loss_weight': 0.0}]
        >>> group.responses[0]
        [{'role': 'assistant', 'content': '4', 'loss_weight': 1.0}]
    """
    return scored_conversations(row, (chosen_column, rejected_column), None, different_turns, empty)
