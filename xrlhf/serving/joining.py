"""Groups that begin alike become one, so that what they share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from xrlhf.structures import TokenizedGroup

__all__ = ["JoinedGroup", "join_groups"]

_LEAST_SAVING = 32
"""Tokens that a joint has to save: a handful at the beginning of every chat template is not worth a segment."""


@dataclass(frozen=True)
class JoinedGroup:
    """A group made of others.

    Args:
        group: What is computed.
        members: The groups it was made of, by their index, in order; the responses of the first come first.
    """

    group: TokenizedGroup
    members: tuple[int, ...]


def join_groups(groups: Sequence[TokenizedGroup], *, token_budget: int) -> list[JoinedGroup]:
    """Join groups whose prompts begin with the same ids, where that saves computing.

    A score does not change but by rounding: a response still attends to every token of its own conversation and to no
    other. Two groups, ``[5 6] -> [7]`` and ``[5 6 8] -> [9]``, would become ``[5 6] -> [7], [8 9]``.

    Args:
        groups: Groups without ratings, attributes or targets.
        token_budget: Most tokens of a joined group; a single one may be longer.

    Returns:
        Every group exactly once, alone or joined; a group that is joined with none is returned as it is.
    """
    order = sorted(range(len(groups)), key=lambda index: (groups[index].prompt_ids.tobytes(), index))
    joined = []
    for places, prefix in _best_joints([groups[index] for index in order], token_budget):
        members = tuple(sorted(order[place] for place in places))
        first = groups[members[0]]
        if len(members) == 1:
            joined.append(JoinedGroup(first, members))
            continue
        responses = tuple(
            np.concatenate([groups[member].prompt_ids[prefix:], ids])
            for member in members
            for ids in groups[member].response_ids
        )
        joined.append(JoinedGroup(TokenizedGroup(first.prompt_ids[:prefix], responses), members))
    return joined


def _shared(first: np.ndarray, second: np.ndarray) -> int:
    """Ids that both begin with."""
    shortest = min(len(first), len(second))
    differs = np.nonzero(first[:shortest] != second[:shortest])[0]
    return int(differs[0]) if len(differs) else shortest


_Joint = tuple[list[int], int]
"""Which groups are joined, by their place in the sorted order, and the length of the prompt that they get."""


@dataclass
class _Branch:
    """Neighbours ``start:stop`` in the sorted order, what all of them share, and the best that can be made of them.

    Neighbours form a tree: what all share at its root, and a branch for those that share more.
    """

    start: int
    stop: int
    prefix: int
    branches: list[_Branch] = field(default_factory=list)
    saved: int = 0
    joints: list[_Joint] = field(default_factory=list)


def _best_joints(groups: Sequence[TokenizedGroup], token_budget: int) -> list[_Joint]:
    """What to join, of groups sorted by their prompts, so that the most tokens are saved."""
    if not groups:
        return []
    shared = np.array([_shared(a.prompt_ids, b.prompt_ids) for a, b in pairwise(groups)], dtype=np.int64)
    lengths = np.array([len(group.prompt_ids) for group in groups], dtype=np.int64)
    counts = np.array([len(group.response_ids) for group in groups], dtype=np.int64)
    totals = np.array([group.num_tokens for group in groups], dtype=np.int64)
    branches = _tree(shared, lengths)
    # The root comes first, so from the end every branch comes after those that it is made of.
    for branch in reversed(branches):
        if not branch.branches:
            branch.joints = [([branch.start], branch.prefix)]
            continue
        p = branch.prefix
        # What is not computed any more where a group gets this prompt: its own one, but what lies behind the shared
        # beginning is computed for each of its responses. The beginning itself is paid for once a joint.
        gains = lengths - counts * (lengths - p)
        costs = totals - gains
        bins: list[list[_Branch]] = [[]]
        room = token_budget - p
        for inner in branch.branches:
            cost = int(costs[inner.start : inner.stop].sum())
            if int(gains[inner.start : inner.stop].sum()) <= inner.saved or cost > token_budget - p:
                branch.saved += inner.saved
                branch.joints += inner.joints
                continue
            if cost > room:
                bins.append([])
                room = token_budget - p
            bins[-1].append(inner)
            room -= cost
        for members in bins:
            gain = sum(int(gains[inner.start : inner.stop].sum()) for inner in members) - p
            apart = sum(inner.saved for inner in members)
            if len(members) > 1 and gain >= apart + _LEAST_SAVING:
                branch.saved += gain
                branch.joints.append(([place for inner in members for place in range(inner.start, inner.stop)], p))
            else:
                branch.saved += apart
                branch.joints += [joint for inner in members for joint in inner.joints]
    return branches[0].joints


def _tree(shared: np.ndarray, lengths: np.ndarray) -> list[_Branch]:
    """All branches, each before those that it is made of."""
    branches = [_Branch(0, len(lengths), 0)]
    for branch in branches:
        if branch.stop - branch.start == 1:
            branch.prefix = int(lengths[branch.start])
            continue
        inside = shared[branch.start : branch.stop - 1]
        branch.prefix = int(inside.min())
        cuts = [int(cut) + branch.start + 1 for cut in np.flatnonzero(inside == branch.prefix)]
        branch.branches = [_Branch(*ends, 0) for ends in pairwise([branch.start, *cuts, branch.stop])]
        # The loop goes on with these.
        branches.extend(branch.branches)
    return branches
