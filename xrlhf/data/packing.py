"""Lay groups out in one packed row: every prompt once, no padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from xrlhf.structures import PackedBatch, SegmentLayout, TokenizedGroup

__all__ = ["pack"]


def pack(
    groups: Sequence[TokenizedGroup],
    *,
    group_ids: Sequence[int] | np.ndarray | None = None,
    weights: Sequence[float] | np.ndarray | None = None,
) -> PackedBatch:
    """Pack groups into one row ``[prompt, response 1, ..., response K, prompt, ...]``.

    Two groups, ``prompt [5 6]`` with responses ``[7]``, ``[8 9]`` and ``prompt [4]`` with ``[3]``, ``[2]``, become::

        input_ids     5 6 | 7 | 8 9 | 4 | 3 | 2
        position_ids  0 1 | 2 | 2 3 | 0 | 1 | 1
        last_index    [[2, 4], [6, 7]]

    Args:
        groups: At least one group; groups may differ in K.
        group_ids: (G,) ids for reports; 0..G-1 if None.
        weights: (G,) 1 for a group that counts, 0 for filler; all 1 if None.

    Returns:
        The packed batch, on the CPU.

    Raises:
        ValueError: No group, a group without a response, or a response without an id (it has no token to be scored at);
            groups with different numbers of attributes; target tokens known of some groups only; values of other
            tokens than the targets.
    """
    if not groups:
        raise ValueError("cannot pack an empty list of groups")
    for g, group in enumerate(groups):
        if not group.response_ids or not all(len(ids) for ids in group.response_ids):
            raise ValueError(f"groups[{g}] needs at least one response, and each at least one id")
    num_groups = len(groups)
    most_responses = max(len(group.response_ids) for group in groups)
    last_index = np.zeros((num_groups, most_responses), dtype=np.int64)
    response_mask = np.zeros((num_groups, most_responses), dtype=bool)
    ratings = np.full((num_groups, most_responses), np.nan, dtype=np.float32)
    pieces: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    start: list[int] = []
    stop: list[int] = []
    context_start: list[int] = []
    context_stop: list[int] = []
    at = 0
    for g, group in enumerate(groups):
        prompt_length = len(group.prompt_ids)
        prompt_start, prompt_stop = at, at + prompt_length
        if prompt_length:
            pieces.append(group.prompt_ids)
            positions.append(np.arange(prompt_length))
            start.append(prompt_start)
            stop.append(prompt_stop)
            context_start.append(prompt_start)
            context_stop.append(prompt_start)
            at = prompt_stop
        for k, ids in enumerate(group.response_ids):
            pieces.append(ids)
            positions.append(np.arange(prompt_length, prompt_length + len(ids)))
            start.append(at)
            at += len(ids)
            stop.append(at)
            context_start.append(prompt_start)
            context_stop.append(prompt_stop)
            last_index[g, k] = at - 1
            response_mask[g, k] = True
        if group.ratings is not None:
            ratings[g, : len(group.response_ids)] = group.ratings
    attributes = _attributes(groups, most_responses)
    of_policies = _targets(groups, most_responses)
    if all(group.reference_logps is not None for group in groups):
        reference = np.zeros((num_groups, most_responses), dtype=np.float32)
        for g, group in enumerate(groups):
            reference[g, : len(group.response_ids)] = group.reference_logps
        of_policies["reference_logps"] = reference
    ids_of_groups = np.arange(num_groups) if group_ids is None else np.asarray(group_ids)
    group_weights = np.ones(num_groups) if weights is None else np.asarray(weights)
    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate(pieces).astype(np.int64))[None],
        position_ids=torch.from_numpy(np.concatenate(positions).astype(np.int64))[None],
        segments=SegmentLayout(tuple(start), tuple(stop), tuple(context_start), tuple(context_stop)),
        last_index=torch.from_numpy(last_index),
        response_mask=torch.from_numpy(response_mask),
        ratings=torch.from_numpy(ratings),
        group_ids=torch.from_numpy(ids_of_groups.astype(np.int64)),
        group_weights=torch.from_numpy(group_weights.astype(np.float32)),
        attributes=None if attributes is None else torch.from_numpy(attributes),
        token_values=_token_values(groups),
        **{name: torch.from_numpy(values) for name, values in of_policies.items()},
    )


def _targets(groups: Sequence[TokenizedGroup], most_responses: int) -> dict[str, np.ndarray]:
    """The tokens to be predicted, what predicts them and whose they are; nothing where no group says."""
    if all(group.is_target is None for group in groups):
        return {}
    index: list[np.ndarray] = []
    source: list[np.ndarray] = []
    slot: list[np.ndarray] = []
    at = 0
    for g, group in enumerate(groups):
        if group.is_target is None:
            raise ValueError(f"groups[{g}] does not say which of its tokens are targets, and others do")
        prompt_stop = at + len(group.prompt_ids)
        pieces = [(at, prompt_stop, len(groups) * most_responses + g)]
        begin = prompt_stop
        for k, ids in enumerate(group.response_ids):
            pieces.append((begin, begin + len(ids), g * most_responses + k))
            begin += len(ids)
        for start, stop, whose in pieces:
            found = start + np.nonzero(group.is_target[start - at : stop - at])[0]
            before = found - 1
            # A response goes on from the end of its prompt, wherever in the row it lies.
            before[found == start] = prompt_stop - 1
            index.append(found)
            source.append(before)
            slot.append(np.full(len(found), whose))
        at = begin
    columns = {"target_index": index, "target_source": source, "target_slot": slot}
    return {name: np.concatenate(parts).astype(np.int64) for name, parts in columns.items()}


def _token_values(groups: Sequence[TokenizedGroup]) -> dict[str, torch.Tensor] | None:
    """By name, (N,) float32 in the order of the target tokens; None where not every group has values."""
    given = [group.token_values for group in groups if group.token_values is not None]
    if len(given) < len(groups):
        return None
    for g, (group, values) in enumerate(zip(groups, given, strict=True)):
        number = 0 if group.is_target is None else int(group.is_target.sum())
        if wrong := [name for name, of in values.items() if len(of) != number]:
            raise ValueError(f"groups[{g}] has {number} target tokens and {len(values[wrong[0]])} values {wrong[0]!r}")
    return {
        name: torch.from_numpy(np.concatenate([values[name] for values in given]).astype(np.float32))
        for name in given[0]
    }


def _attributes(groups: Sequence[TokenizedGroup], most_responses: int) -> np.ndarray | None:
    """(G, K, A) float32, NaN where there is none; None where no group carries any."""
    numbers = {group.attributes.shape[1] for group in groups if group.attributes is not None}
    if not numbers:
        return None
    if len(numbers) > 1:
        raise ValueError(f"groups with {sorted(numbers)} attributes cannot share a batch")
    attributes = np.full((len(groups), most_responses, numbers.pop()), np.nan, dtype=np.float32)
    for g, group in enumerate(groups):
        if group.attributes is not None:
            attributes[g, : len(group.response_ids)] = group.attributes
    return attributes
