"""Which groups step ``s`` uses, and how they are dealt to ranks and micro-batches.

Everything here is a function of (seed, step, lengths): resuming at any step needs no replay, and the number of ranks
or the token budget never changes which groups a step holds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xrlhf.data.permutation import Permutation, derive_key

__all__ = ["GroupStream", "MicroBatch", "StepPlan", "deal", "plan_whole_set"]


class GroupStream:
    """The endless, shuffled order in which groups are trained on.

    Position ``p`` of the stream belongs to epoch ``p // epoch_size``. An epoch holds ``round(weight * size)`` visits
    (at least one) of each dataset: weight 1 shows every group once an epoch, 2 twice, 0.5 every second one. Each
    dataset is walked in passes of its own, every pass a fresh permutation, so after any number of whole epochs no
    group of a dataset has been seen more than once more often than another.

    Args:
        sizes: Number of groups of each dataset; global ids count through the datasets in order.
        weights: Visits per group and epoch of each dataset, positive.
        seed: Seed of the order.
        shuffle: False keeps the datasets' own order (datasets one after the other).
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float] | None = None, *, seed: int, shuffle: bool = True
    ) -> None:
        weights = [1.0] * len(sizes) if weights is None else list(weights)
        if len(weights) != len(sizes):
            raise ValueError(f"{len(sizes)} datasets but {len(weights)} weights")
        if any(size < 1 for size in sizes) or any(weight <= 0 for weight in weights):
            raise ValueError(f"sizes and weights must be positive, got {list(sizes)} and {weights}")
        self.sizes = list(sizes)
        self.seed = seed
        self.shuffle = shuffle
        self._visits = [max(1, round(size * weight)) for size, weight in zip(sizes, weights, strict=True)]
        self._visit_ends = np.cumsum(self._visits)
        self._id_starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self.epoch_size = int(self._visit_ends[-1])

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Global group ids at stream positions ``start:stop``, int64."""
        positions = np.arange(start, stop, dtype=np.int64)
        epochs, inside = np.divmod(positions, self.epoch_size)
        ids = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            ids[chosen] = self._epoch_ids(int(epoch), inside[chosen])
        return ids

    def _epoch_ids(self, epoch: int, inside: np.ndarray) -> np.ndarray:
        if self.shuffle:
            inside = Permutation(self.epoch_size, derive_key(self.seed, "epoch", epoch))(inside)
        dataset = np.searchsorted(self._visit_ends, inside, side="right")
        ids = np.empty(len(inside), dtype=np.int64)
        for d in np.unique(dataset):
            chosen = dataset == d
            visits, size = self._visits[d], self.sizes[d]
            visit = inside[chosen] - (self._visit_ends[d] - visits) + epoch * visits
            passes, local = np.divmod(visit, size)
            if self.shuffle:
                for number in np.unique(passes):
                    of_pass = passes == number
                    key = derive_key(self.seed, "pass", int(d), int(number))
                    local[of_pass] = Permutation(size, key)(local[of_pass])
            ids[chosen] = self._id_starts[d] + local
        return ids


@dataclass(frozen=True)
class MicroBatch:
    """Groups of one forward and backward pass.

    Args:
        group_ids: (G,) int64 global ids.
        weights: (G,) float32: 1 for a group of the step, 0 for filler that keeps the ranks' counts equal.
    """

    group_ids: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: its groups over all ranks, and the micro-batches of each rank (equally many)."""

    num_groups: int
    micro_batches: tuple[tuple[MicroBatch, ...], ...]


def deal(group_ids: np.ndarray, lengths: np.ndarray, *, world_size: int, token_budget: int) -> StepPlan:
    """Deal groups to ranks and micro-batches, every rank the same number, loads as even as can be.

    Groups go, longest first, to the least loaded micro-batch; the number of micro-batches is the smallest (above 64
    a rank: to within 3 %) for which this overfills none. A group longer than the budget gets a micro-batch of its
    own. Where a step has fewer groups than micro-batches, which takes more ranks than one, the shortest group stands
    in the empty ones with weight 0.

    Args:
        group_ids: (N,) the groups of the step.
        lengths: (N,) tokens each group costs.
        world_size: Number of ranks.
        token_budget: Most tokens of a micro-batch, unless a single group exceeds it.
    """
    num_groups = len(group_ids)
    if num_groups == 0:
        raise ValueError("a step needs at least one group")
    lengths = lengths.astype(np.int64)
    order = np.lexsort((group_ids, -lengths))
    per_rank = math.ceil(_fewest_bins(lengths, token_budget) / world_size)
    while (bins := _fill(order, lengths, per_rank * world_size, token_budget)) is None:
        # One more each; from 64 on a little faster, so that planning a large step stays a matter of milliseconds.
        per_rank = min(per_rank + max(1, per_rank // 32), math.ceil(num_groups / world_size))
    shortest = group_ids[order[-1]]
    batches = []
    for members in bins:
        if members:
            batches.append(MicroBatch(group_ids[members], np.ones(len(members), dtype=np.float32)))
        else:
            batches.append(MicroBatch(np.array([shortest]), np.zeros(1, dtype=np.float32)))
    return StepPlan(num_groups, tuple(tuple(batches[rank::world_size]) for rank in range(world_size)))


def _fewest_bins(lengths: np.ndarray, token_budget: int) -> int:
    """Fewer micro-batches than this cannot hold the groups, however they are dealt."""
    # A micro-batch has room for at most k groups that are each longer than budget / (k + 1).
    by_count = max(math.ceil(int((lengths * (k + 1) > token_budget).sum()) / k) for k in range(1, 5))
    return max(1, by_count, math.ceil(int(np.minimum(lengths, token_budget).sum()) / token_budget))


def _fill(order: np.ndarray, lengths: np.ndarray, num_bins: int, token_budget: int) -> list[list[int]] | None:
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [(0, b) for b in range(num_bins)]
    for index in order.tolist():
        load, b = loads[0]
        if bins[b] and load + int(lengths[index]) > token_budget:
            return None
        bins[b].append(index)
        heapq.heapreplace(loads, (load + int(lengths[index]), b))
    return bins


def plan_whole_set(lengths: np.ndarray, *, world_size: int, token_budget: int) -> list[list[np.ndarray]]:
    """Micro-batches that go once over a whole set: per rank a list of index arrays, longest groups first.

    Neighbours in length share a micro-batch, so the ranks finish together; unlike training, ranks may hold different
    numbers of micro-batches.

    Args:
        lengths: (N,) tokens each group costs.
        world_size: Number of ranks.
        token_budget: Most tokens of a micro-batch, unless a single group exceeds it.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    ends = np.cumsum(lengths[order], dtype=np.int64)
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + token_budget, side="right")))
        batches.append(order[start:stop])
        start = stop
    return [batches[rank::world_size] for rank in range(world_size)]
