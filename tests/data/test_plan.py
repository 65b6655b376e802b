"""Which groups a step uses and how they are dealt: functions of (seed, step, lengths) and nothing else."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xrlhf.data.plan import GroupStream, StepPlan, deal, plan_whole_set

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)
WEIGHTS = st.sampled_from([0.1, 0.5, 1.0, 1.5, 2.0, 3.7])


@st.composite
def streams(draw: st.DrawFn) -> GroupStream:
    sizes = draw(SIZES)
    weights = draw(st.lists(WEIGHTS, min_size=len(sizes), max_size=len(sizes)))
    return GroupStream(sizes, weights, seed=draw(st.integers(0, 99)), shuffle=draw(st.booleans()))


def counts_by_group(stream: GroupStream, start: int, stop: int) -> list[list[int]]:
    """How often each group of each dataset is seen at positions ``start:stop``."""
    seen = Counter(stream(start, stop).tolist())
    starts = np.concatenate([[0], np.cumsum(stream.sizes)])
    return [[seen[g] for g in range(starts[d], starts[d + 1])] for d in range(len(stream.sizes))]


# ---------------------------------------------------------------- the stream


@given(stream=streams(), start=st.integers(0, 300), cuts=st.lists(st.integers(0, 40), max_size=6))
@settings(deadline=None)
def test_any_slicing_of_the_stream_gives_the_same_ids(stream: GroupStream, start: int, cuts: list[int]) -> None:
    edges = [start, *(start + int(c) for c in np.cumsum(cuts))]
    pieces = [stream(a, b) for a, b in pairwise(edges)]
    again = GroupStream(stream.sizes, _weights(stream), seed=stream.seed, shuffle=stream.shuffle)
    whole = again(edges[0], edges[-1])
    assert whole.dtype == np.int64
    assert [int(i) for piece in pieces for i in piece] == whole.tolist()


def _weights(stream: GroupStream) -> list[float]:
    """Weights that ask for the same visits."""
    return [visits / size for visits, size in zip(stream._visits, stream.sizes, strict=True)]


@given(stream=streams(), num_epochs=st.integers(1, 6))
@settings(deadline=None)
def test_after_whole_epochs_no_group_is_ahead_by_more_than_one(stream: GroupStream, num_epochs: int) -> None:
    for counts, visits in zip(counts_by_group(stream, 0, num_epochs * stream.epoch_size), stream._visits, strict=True):
        assert sum(counts) == num_epochs * visits
        assert max(counts) - min(counts) <= 1


@given(sizes=SIZES, weight=WEIGHTS)
def test_an_epoch_holds_round_weight_times_size_visits_and_at_least_one(sizes: list[int], weight: float) -> None:
    stream = GroupStream(sizes, [weight] * len(sizes), seed=0)
    assert stream.epoch_size == sum(max(1, round(weight * size)) for size in sizes)


def test_weights_are_visits_per_epoch() -> None:
    """6 groups once, 4 groups twice, 4 groups every second epoch: 6 + 8 + 2 = 16 visits an epoch."""
    stream = GroupStream([6, 4, 4], [1, 2, 0.5], seed=3)
    assert stream.epoch_size == 16
    for epoch in range(4):
        once, twice, half = counts_by_group(stream, epoch * 16, epoch * 16 + 16)
        assert once == [1] * 6
        assert twice == [2] * 4
        assert sorted(half) == [0, 0, 1, 1]
    assert counts_by_group(stream, 0, 32)[2] == [1] * 4
    assert counts_by_group(stream, 32, 64)[2] == [1] * 4


def test_weight_one_is_the_default() -> None:
    assert np.array_equal(GroupStream([5, 7], seed=1)(0, 30), GroupStream([5, 7], [1, 1], seed=1)(0, 30))


def test_every_epoch_has_an_order_of_its_own_and_mixes_the_datasets() -> None:
    stream = GroupStream([40, 60], seed=0)
    epochs = [stream(e * 100, e * 100 + 100).tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    first_half_from_a = sum(i < 40 for i in epochs[0][:50])
    assert 10 <= first_half_from_a <= 30


def test_the_seed_decides_the_order() -> None:
    assert not np.array_equal(GroupStream([100], seed=0)(0, 100), GroupStream([100], seed=1)(0, 100))


def test_without_shuffling_the_datasets_follow_one_another() -> None:
    """3 groups once (0 1 2), 4 groups at half weight: 3 4 in even epochs, 5 6 in odd ones."""
    stream = GroupStream([3, 4], [1, 0.5], seed=9, shuffle=False)
    assert stream(0, 12).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 0, 1]


def test_values_that_must_never_change() -> None:
    """Pinned: a run resumed by a later version must go on in the same order."""
    assert GroupStream([7, 5], [1, 2], seed=11)(15, 40).tolist() == [
        *(11, 7, 8, 10, 4, 7, 11, 7, 1, 3, 8, 10, 6, 11, 9, 9, 5, 0, 2, 7, 7, 9, 9, 1, 6)
    ]


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([3, 4], [1.0], "2 datasets but 1 weights"),
        ([3, 0], [1.0, 1.0], "sizes and weights must be positive, got"),
        ([3, 4], [1.0, 0.0], "sizes and weights must be positive, got"),
        ([3, 4], [1.0, -2.0], "sizes and weights must be positive, got"),
    ],
)
def test_refuses_impossible_streams(sizes: list[int], weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupStream(sizes, weights, seed=0)


# ---------------------------------------------------------------- dealing a step


@st.composite
def steps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    lengths = draw(st.lists(st.integers(1, 120), min_size=1, max_size=40))
    ids = draw(st.lists(st.integers(0, 10**7), min_size=len(lengths), max_size=len(lengths)))
    return np.array(ids), np.array(lengths)


def dealt(plan: StepPlan) -> Counter[int]:
    return Counter(
        int(group)
        for rank in plan.micro_batches
        for batch in rank
        for group, weight in zip(batch.group_ids, batch.weights, strict=True)
        if weight == 1
    )


@given(step=steps(), world_size=st.integers(1, 9), budget=st.integers(1, 400))
@settings(deadline=None)
def test_a_dealt_step_keeps_its_promises(step: tuple[np.ndarray, np.ndarray], world_size: int, budget: int) -> None:
    ids, lengths = step
    plan = deal(ids, lengths, world_size=world_size, token_budget=budget)
    length_of = {int(i): int(n) for i, n in zip(ids, lengths, strict=True)}
    unique = len(length_of) == len(ids)
    assert plan.num_groups == len(ids)
    assert len(plan.micro_batches) == world_size
    assert len({len(rank) for rank in plan.micro_batches}) == 1
    assert dealt(plan) == Counter(ids.tolist())
    num_bins = sum(len(rank) for rank in plan.micro_batches)
    loads = []
    for batch in (batch for rank in plan.micro_batches for batch in rank):
        assert batch.group_ids.dtype == np.int64
        assert batch.weights.dtype == np.float32
        if not batch.weights.any():
            assert num_bins > len(ids), "filler where there was a group for everybody"
            assert batch.group_ids.tolist() == [int(ids[np.lexsort((ids, -lengths))[-1]])]
            continue
        assert (batch.weights == 1).all()
        if unique:
            load = sum(length_of[int(i)] for i in batch.group_ids)
            loads.append(load)
            assert load <= budget or len(batch.group_ids) == 1
    assert num_bins - len(ids) < world_size
    if unique and num_bins <= len(ids):
        assert max(loads) - min(loads) <= max(lengths)


@given(step=steps(), budgets=st.lists(st.integers(20, 500), min_size=2, max_size=3))
@settings(deadline=None)
def test_ranks_and_budget_never_change_which_groups_a_step_holds(
    step: tuple[np.ndarray, np.ndarray], budgets: list[int]
) -> None:
    """1 x 8 = 8 x 1 = 2 ranks: one group a micro-batch, all in one, or anything between."""
    ids, lengths = step
    for world_size, budget in product((1, 2, 8), budgets):
        plan = deal(ids, lengths, world_size=world_size, token_budget=budget)
        assert dealt(plan) == Counter(ids.tolist())
        assert plan.num_groups == len(ids)


@given(step=steps(), world_size=st.integers(1, 4), budget=st.integers(1, 400))
@settings(deadline=None)
def test_dealing_is_deterministic_and_blind_to_the_order_it_is_given(
    step: tuple[np.ndarray, np.ndarray], world_size: int, budget: int
) -> None:
    ids, lengths = step
    shuffled = np.random.default_rng(0).permutation(len(ids))
    one = deal(ids, lengths, world_size=world_size, token_budget=budget)
    two = deal(ids[shuffled], lengths[shuffled], world_size=world_size, token_budget=budget)
    for rank_one, rank_two in zip(one.micro_batches, two.micro_batches, strict=True):
        for batch_one, batch_two in zip(rank_one, rank_two, strict=True):
            assert np.array_equal(batch_one.group_ids, batch_two.group_ids)
            assert np.array_equal(batch_one.weights, batch_two.weights)


def as_lists(plan: StepPlan) -> list[list[list[int]]]:
    return [[batch.group_ids.tolist() for batch in rank] for rank in plan.micro_batches]


def test_longest_first_to_the_least_loaded() -> None:
    """Lengths 9 7 5 4 3 with budget 15: two micro-batches; 9, 7, 5 to the 7, 4 to the 9, 3 to the 12."""
    ids, lengths = np.array([10, 11, 12, 13, 14]), np.array([3, 4, 5, 7, 9])
    assert as_lists(deal(ids, lengths, world_size=1, token_budget=15)) == [[[14, 11], [13, 12, 10]]]
    assert as_lists(deal(ids, lengths, world_size=2, token_budget=15)) == [[[14, 11]], [[13, 12, 10]]]


def test_a_group_over_the_budget_is_alone_and_costs_no_extra_micro_batches() -> None:
    """1000 tokens alone, ten times 10 fit into 100: two micro-batches, not the eleven that 1100 / 100 would say."""
    ids = np.arange(11)
    lengths = np.array([10] * 10 + [1000])
    assert as_lists(deal(ids, lengths, world_size=1, token_budget=100)) == [[[10], list(range(10))]]


def test_filler_keeps_the_ranks_in_step() -> None:
    """Three groups on four ranks: the last rank computes the shortest group with weight 0."""
    plan = deal(np.array([5, 6, 7]), np.array([30, 10, 20]), world_size=4, token_budget=100)
    assert as_lists(plan) == [[[5]], [[7]], [[6]], [[6]]]
    assert [rank[0].weights.tolist() for rank in plan.micro_batches] == [[1.0], [1.0], [1.0], [0.0]]


def test_no_filler_where_the_groups_go_round() -> None:
    plan = deal(np.arange(4), np.array([60, 60, 60, 60]), world_size=2, token_budget=100)
    assert [len(rank) for rank in plan.micro_batches] == [2, 2]
    assert all(batch.weights.all() for rank in plan.micro_batches for batch in rank)


def test_a_large_step_of_awkward_lengths_is_dealt_without_filler() -> None:
    """Three of 300 to 399 rarely fit into 1000, so most micro-batches hold two: the search for their number is long."""
    lengths = np.random.default_rng(0).integers(300, 400, 1000)
    (batches,) = deal(np.arange(1000), lengths, world_size=1, token_budget=1000).micro_batches
    assert all(batch.weights.all() and lengths[batch.group_ids].sum() <= 1000 for batch in batches)
    assert 334 <= len(batches) <= 1.04 * 500


def test_a_large_step_of_single_groups_needs_no_filler() -> None:
    """No two of 6, 6, ..., 5 fit into 10: 199 micro-batches, though counting what is over half the budget gives 198."""
    plan = deal(np.arange(199), np.array([6] * 198 + [5]), world_size=1, token_budget=10)
    assert as_lists(plan) == [[[index] for index in range(199)]]


def test_equal_lengths_are_told_apart_by_id() -> None:
    plan = deal(np.array([9, 3, 6]), np.array([5, 5, 5]), world_size=1, token_budget=5)
    assert as_lists(plan) == [[[3], [6], [9]]]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), budget=st.integers(1, 40))
@settings(deadline=None)
def test_needs_about_as_few_micro_batches_as_can_be(lengths: list[int], budget: int) -> None:
    """Against all ways of dealing up to five groups: at most a third more than the fewest, and one."""
    plan = deal(np.arange(len(lengths)), np.array(lengths), world_size=1, token_budget=budget)
    used = len(plan.micro_batches[0])
    optimum = min(
        len(set(places))
        for places in product(range(len(lengths)), repeat=len(lengths))
        if _fits(lengths, places, budget)
    )
    assert optimum <= used <= math.ceil(4 / 3 * optimum) + 1


def _fits(lengths: list[int], places: tuple[int, ...], budget: int) -> bool:
    for place in set(places):
        inside = [length for length, p in zip(lengths, places, strict=True) if p == place]
        if len(inside) > 1 and sum(inside) > budget:
            return False
    return True


def test_a_step_without_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one group"):
        deal(np.array([], dtype=np.int64), np.array([], dtype=np.int64), world_size=1, token_budget=10)


def test_ten_million_groups_cost_no_more_than_the_step() -> None:
    """A shuffled index of ten million groups would take 80 MB; a step of 512 takes some kilobytes."""
    size, per_step = 10_000_000, 512
    lengths = np.full(size, 300, dtype=np.int32)
    lengths[::7] = 1700
    stream = GroupStream([size], seed=0)
    last = size // per_step
    tracemalloc.start()
    try:
        for step in (0, 77, last, 50 * last):
            ids = stream(step * per_step, (step + 1) * per_step)
            plan = deal(ids, lengths[ids], world_size=16, token_budget=8192)
            assert plan.num_groups == per_step
            assert dealt(plan) == Counter(ids.tolist())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


# ---------------------------------------------------------------- a whole set


@given(lengths=st.lists(st.integers(1, 100), max_size=60), world_size=st.integers(1, 5), budget=st.integers(1, 300))
@settings(deadline=None)
def test_a_whole_set_is_covered_once(lengths: list[int], world_size: int, budget: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    ranks = plan_whole_set(array, world_size=world_size, token_budget=budget)
    assert len(ranks) == world_size
    batches = [batch for rank in ranks for batch in rank]
    assert all(batch.dtype == np.int64 and len(batch) for batch in batches)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(array[batch].sum() <= budget or len(batch) == 1 for batch in batches)
    numbers = [len(rank) for rank in ranks]
    assert max(numbers) - min(numbers) <= 1
    for rank in ranks:
        in_order = [int(array[i]) for batch in rank for i in batch]
        assert in_order == sorted(in_order, reverse=True)


def test_a_whole_set_by_hand() -> None:
    """Budget 10, longest first: 12 alone, 6 + 4, 3 + 3 + 2, dealt to two ranks in turn; equal lengths keep order."""
    lengths = np.array([3, 12, 4, 2, 6, 3], dtype=np.int32)
    ranks = plan_whole_set(lengths, world_size=2, token_budget=10)
    assert [[batch.tolist() for batch in rank] for rank in ranks] == [[[1], [0, 5, 3]], [[4, 2]]]


def test_an_empty_set_has_no_batches() -> None:
    assert plan_whole_set(np.array([], dtype=np.int64), world_size=2, token_budget=10) == [[], []]
