"""Steps and evaluation batches: the same groups on any number of ranks, from any step on."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_tokenizer import byte_tokenizer

from xrlhf.data.dataset import GroupDataset
from xrlhf.data.loader import EvalLoader, StepBatches, StepLoader
from xrlhf.data.map_fns import ranked_map_fn
from xrlhf.data.sources import MemorySource
from xrlhf.errors import ConfigError
from xrlhf.structures import PackedBatch

NUM_GROUPS = 30


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> GroupDataset:
    """Two sources of 20 and 10 groups with two to four answers, from about 30 to about 130 tokens each."""
    rows = [
        {"prompt": f"prompt {n}", "responses": [answer * (1 + 7 * n % 23) + str(n) for answer in "abcd"[: 2 + n % 3]]}
        for n in range(NUM_GROUPS)
    ]
    sources = [
        {"source": MemorySource(rows[:20], "one"), "map_fn": ranked_map_fn},
        {"source": MemorySource(rows[20:], "two"), "map_fn": ranked_map_fn},
    ]
    cache = str(tmp_path_factory.mktemp("cache"))
    return GroupDataset(sources, tokenizer=byte_tokenizer(), max_length=200, cache_dir=cache)


def loaders(dataset: GroupDataset, world_size: int, **options: Any) -> list[StepLoader]:
    settings: dict[str, Any] = {"groups_per_step": 8, "token_budget": 300, "seed": 5}
    return [
        StepLoader(dataset, **{**settings, **options}, rank=rank, world_size=world_size) for rank in range(world_size)
    ]


def counted_groups(parts: Sequence[StepBatches]) -> Counter[int]:
    return Counter(
        int(group)
        for part in parts
        for batch in part.batches
        for group, weight in zip(batch.group_ids, batch.group_weights, strict=True)
        if weight == 1
    )


def same(one: PackedBatch, two: PackedBatch) -> bool:
    for field in dataclasses.fields(PackedBatch):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if not (torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) if isinstance(a, torch.Tensor) else a == b):
            return False
    return True


def same_steps(one: Sequence[StepBatches], two: Sequence[StepBatches]) -> bool:
    return len(one) == len(two) and all(
        (a.step, a.num_groups, a.num_responses, a.num_tokens) == (b.step, b.num_groups, b.num_responses, b.num_tokens)
        and len(a.batches) == len(b.batches)
        and all(same(x, y) for x, y in zip(a.batches, b.batches, strict=True))
        for a, b in zip(one, two, strict=True)
    )


# ---------------------------------------------------------------- steps


@pytest.mark.parametrize("budget", [60, 300, 10**6])
@pytest.mark.parametrize("world_size", [2, 3, 16])
def test_any_number_of_ranks_holds_the_same_groups(dataset: GroupDataset, world_size: int, budget: int) -> None:
    (alone,) = loaders(dataset, 1)
    for step in range(6):
        whole = alone.load(step)
        parts = [loader.load(step) for loader in loaders(dataset, world_size, token_budget=budget)]
        assert counted_groups(parts) == counted_groups([whole]) == Counter(alone.group_ids(step).tolist())
        assert len({len(part.batches) for part in parts}) == 1
        assert all(part.num_groups == whole.num_groups == 8 for part in parts)
        assert sum(part.num_tokens for part in parts) == whole.num_tokens
        assert sum(part.num_responses for part in parts) == whole.num_responses


def test_batches_hold_what_the_dataset_holds(dataset: GroupDataset) -> None:
    (loader,) = loaders(dataset, 1)
    loaded = loader.load(2)
    assert len(loaded.batches) > 1
    for batch in loaded.batches:
        ids = batch.input_ids[0]
        assert batch.num_tokens <= 300
        for g, index in enumerate(batch.group_ids.tolist()):
            group = dataset[index]
            assert int(batch.response_mask[g].sum()) == len(group.response_ids)
            for k, response in enumerate(group.response_ids):
                stop = int(batch.last_index[g, k]) + 1
                assert ids[stop - len(response) : stop].tolist() == response.tolist()
    assert loaded.num_tokens == sum(dataset[int(i)].num_tokens for i in loader.group_ids(2))
    assert loaded.num_responses == sum(len(dataset[int(i)].response_ids) for i in loader.group_ids(2))


def test_filler_is_computed_and_not_counted(dataset: GroupDataset) -> None:
    """Two groups on three ranks: the third computes the shorter one with weight 0."""
    parts = [loader.load(0) for loader in loaders(dataset, 3, groups_per_step=2)]
    assert [len(part.batches) for part in parts] == [1, 1, 1]
    assert [part.batches[0].group_weights.tolist() for part in parts] == [[1.0], [1.0], [0.0]]
    assert (parts[2].num_tokens, parts[2].num_responses) == (0, 0)
    assert parts[2].batches[0].num_tokens == parts[1].batches[0].num_tokens == parts[1].num_tokens > 0


@pytest.mark.parametrize("start", [0, 1, 5, 8])
def test_a_run_resumed_at_any_step_sees_identical_batches(dataset: GroupDataset, start: int) -> None:
    (first,) = loaders(dataset, 1)
    whole = list(first.steps(0, 9))
    assert [item.step for item in whole] == list(range(9))
    (again,) = loaders(dataset, 1)
    assert same_steps(list(again.steps(start, 9)), whole[start:])
    assert same_steps([again.load(start)], [whole[start]])


def test_the_seed_decides_the_order(dataset: GroupDataset) -> None:
    (one,), (two,) = loaders(dataset, 1), loaders(dataset, 1, seed=6)
    assert one.group_ids(0).tolist() != two.group_ids(0).tolist()


def test_without_shuffling_groups_come_in_file_order(dataset: GroupDataset) -> None:
    (loader,) = loaders(dataset, 1, shuffle=False)
    assert [loader.group_ids(step).tolist() for step in (0, 3)] == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [24, 25, 26, 27, 28, 29, 0, 1],
    ]


def test_the_last_step_of_an_epoch_reaches_into_the_next(dataset: GroupDataset) -> None:
    """30 groups in steps of 8: four steps, 32 visits, two of them of the second epoch; eight steps for two epochs."""
    (loader,) = loaders(dataset, 1)
    assert len(loader) == 4
    assert [loader.num_steps(epochs) for epochs in (1, 2, 0.5, 0.1, 2 / 30)] == [4, 8, 2, 1, 1]
    first_epoch = np.concatenate([loader.group_ids(step) for step in range(4)])
    assert sorted(first_epoch[:30].tolist()) == list(range(30))
    assert np.array_equal(first_epoch[30:], loader.stream(30, 32))
    two_epochs = np.concatenate([loader.group_ids(step) for step in range(8)])[:60]
    assert set(Counter(two_epochs.tolist()).values()) == {2}


def test_steps_may_start_and_stop_anywhere(dataset: GroupDataset) -> None:
    (loader,) = loaders(dataset, 1, groups_per_step=7)
    assert [item.step for item in loader.steps(3, 5)] == [3, 4]
    assert [item.step for item in loader.steps(4, 5)] == [4]
    assert list(loader.steps(5, 5)) == []


@pytest.mark.parametrize("options", [{"groups_per_step": 0}, {"token_budget": 0}])
def test_impossible_steps_are_refused(dataset: GroupDataset, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"groups_per_step and token_budget must be at least 1, got \d+ and \d+"):
        loaders(dataset, 1, **options)


# ---------------------------------------------------------------- loading ahead


def test_steps_are_packed_by_another_thread(dataset: GroupDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    (loader,) = loaders(dataset, 1)
    load, threads = loader.load, []

    def watched(step: int) -> StepBatches:
        threads.append(threading.current_thread())
        return load(step)

    monkeypatch.setattr(loader, "load", watched)
    assert len(list(loader.steps(0, 4))) == 4
    assert len(threads) == 4
    assert threading.main_thread() not in threads


def test_an_error_in_that_thread_surfaces_at_its_step(dataset: GroupDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    (loader,) = loaders(dataset, 1)
    load = loader.load

    def failing(step: int) -> StepBatches:
        if step == 3:
            raise OSError("the disk is gone")
        return load(step)

    monkeypatch.setattr(loader, "load", failing)
    steps = loader.steps(0, 9)
    assert [next(steps).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(steps)


def test_leaving_early_stops_loading(dataset: GroupDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    (loader,) = loaders(dataset, 1)
    load, started = loader.load, []

    def watched(step: int) -> StepBatches:
        started.append(step)
        return load(step)

    monkeypatch.setattr(loader, "load", watched)
    steps = loader.steps(0, 1000)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert len(started) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("xrlhf-loader")]


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("world_size", [1, 2, 7])
@pytest.mark.parametrize("budget", [50, 300, 10**6])
def test_evaluation_sees_every_group_once(dataset: GroupDataset, world_size: int, budget: int) -> None:
    """Every rank makes as many batches; those that only keep it in step hold one group and are marked."""
    seen: list[int] = []
    lengths = set()
    for rank in range(world_size):
        loader = EvalLoader(dataset, token_budget=budget, rank=rank, world_size=world_size)
        items = list(loader)
        assert len(items) == len(loader)
        lengths.add(len(items))
        for item in items:
            if not item.is_counted:
                assert item.batch.num_groups == 1
                continue
            assert item.batch.num_tokens <= budget or item.batch.num_groups == 1
            assert item.batch.group_weights.all()
            assert item.datasets.tolist() == [int(index >= 20) for index in item.batch.group_ids]
            seen += item.batch.group_ids.tolist()
    assert sorted(seen) == list(range(NUM_GROUPS))
    assert len(lengths) == 1


def test_evaluation_repeats_itself(dataset: GroupDataset) -> None:
    loader = EvalLoader(dataset, token_budget=300)
    assert all(same(a.batch, b.batch) for a, b in zip(loader, loader, strict=True))


def test_evaluation_of_a_fold_numbers_the_groups_of_the_fold(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "responses": ["a", "b"]} for n in range(12)]
    held = GroupDataset(
        [{"source": MemorySource(rows), "map_fn": ranked_map_fn}],
        tokenizer=byte_tokenizer(),
        max_length=99,
        fold={"index": 0, "count": 2, "part": "held_out"},
        cache_dir=str(tmp_path),
    )
    ids = [index for item in EvalLoader(held, token_budget=200) for index in item.batch.group_ids.tolist()]
    assert sorted(ids) == list(range(len(held)))


def test_an_impossible_budget_is_refused(dataset: GroupDataset) -> None:
    with pytest.raises(ConfigError, match="token_budget must be at least 1, got 0"):
        EvalLoader(dataset, token_budget=0)
