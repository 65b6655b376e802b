"""Answers to the wrong prompt: what an estimate of how far a policy is from its reference is made on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xrlhf.data.packing import pack
from xrlhf.data.plan import deal
from xrlhf.structures import PackedBatch, TokenizedGroup

__all__ = ["mismatched_batches", "mismatched_groups"]


def mismatched_groups(groups: Sequence[TokenizedGroup], *, max_length: int) -> list[TokenizedGroup]:
    """The prompt of every group with the answers of the next one; the last has those of the first.

    A prompt is what stands before a group's first target token, an answer all that follows. Every answer is used once.
    Where prompt and answer are too long together, the prompt keeps its first token and its end.

    Args:
        groups: Groups that say which of their tokens are targets.
        max_length: Most tokens of a conversation.

    Returns:
        As many groups; none where there is but one.

    Raises:
        ValueError: A group does not say which of its tokens are targets, or has an answer without any.
    """
    if len(groups) < 2:
        return []
    split = [_split(group) for group in groups]
    made = []
    for number, (prompt, _) in enumerate(split):
        _, answers = split[(number + 1) % len(split)]
        # At least 1: the answer stood behind a prompt of its own.
        room = max_length - max(len(ids) for ids, _ in answers)
        if len(prompt) > room:
            prompt = np.concatenate([prompt[:1], prompt[len(prompt) - room + 1 :]])
        masks = [np.zeros(len(prompt), dtype=bool), *(mask for _, mask in answers)]
        made.append(TokenizedGroup(prompt, tuple(ids for ids, _ in answers), is_target=np.concatenate(masks)))
    return made


def _split(group: TokenizedGroup) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """The ids of the prompt; and of each answer the ids, and which of them are targets."""
    if group.is_target is None:
        raise ValueError("the group does not say which of its tokens are targets")
    length = len(group.prompt_ids)
    of_prompt = group.is_target[:length]
    prompt, answers = group.prompt_ids, []
    end = length
    for number, ids in enumerate(group.response_ids):
        begin, end = end, end + len(ids)
        whole = np.concatenate([group.prompt_ids, ids])
        mask = np.concatenate([of_prompt, group.is_target[begin:end]])
        if not mask.any():
            raise ValueError(f"response {number} has no target")
        first = int(np.argmax(mask))
        answers.append((whole[first:], mask[first:]))
        if not number:
            prompt = whole[:first]
    return prompt, answers


def mismatched_batches(
    groups: Sequence[TokenizedGroup], *, max_length: int, token_budget: int, rank: int, world_size: int
) -> tuple[PackedBatch, ...]:
    """One process's share of the mismatched groups, packed; every process gets as many batches.

    Args:
        groups: The same ones in the same order on every process.
        max_length: As in :func:`mismatched_groups`.
        token_budget: Most tokens of a batch, unless a single group exceeds it.
        rank: This process.
        world_size: All processes.
    """
    made = mismatched_groups(groups, max_length=max_length)
    if not made:
        return ()
    lengths = np.array([group.num_tokens for group in made])
    plan = deal(np.arange(len(made)), lengths, world_size=world_size, token_budget=token_budget)
    return tuple(
        pack([made[int(i)] for i in batch.group_ids], group_ids=batch.group_ids, weights=batch.weights)
        for batch in plan.micro_batches[rank]
    )
