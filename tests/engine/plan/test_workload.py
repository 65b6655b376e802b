"""What a step brings to a device, by the data or without it."""

from __future__ import annotations

import pytest
from toy import ToyDataset, pairs

from xrlhf.data.loader import StepLoader
from xrlhf.engine.plan import assumed_workload, workload_of
from xrlhf.errors import ConfigError


def loader(dataset: ToyDataset, token_budget: int, world_size: int) -> StepLoader:
    return StepLoader(dataset, groups_per_step=8, token_budget=token_budget, seed=0, world_size=world_size)  # type: ignore[arg-type]


def test_the_largest_micro_batch_of_the_data() -> None:
    """24 groups in 3 steps: what the loaders of both processes would load."""
    dataset = pairs()
    found = workload_of(loader(dataset, 30, 2))
    loaded = []
    for rank in (0, 1):
        own = StepLoader(dataset, groups_per_step=8, token_budget=30, seed=0, rank=rank, world_size=2)  # type: ignore[arg-type]
        loaded.append([own.load(step) for step in range(3)])
    batches = [batch for of_rank in loaded for step in of_rank for batch in step.batches]
    assert found.batch.num_tokens == max(batch.num_tokens for batch in batches)
    assert found.micro_batches == max(len(step.batches) for step in loaded[0])
    sums = [[sum(batch.num_tokens for batch in step.batches) for step in of_rank] for of_rank in loaded]
    assert found.tokens == sum(max(pair) for pair in zip(*sums, strict=True)) / 3
    assert found.all_tokens == dataset.num_tokens().sum() / 3


def test_the_longest_group_counts_wherever_it_is() -> None:
    dataset = pairs()
    longest = int(dataset.num_tokens().max())
    assert workload_of(loader(dataset, 1, 2)).batch.num_tokens == longest


def test_without_data_micro_batches_are_full() -> None:
    """Pairs of conversations of 100 tokens that share 50 take 150 tokens; what is left of 400 is filled.

    8 groups on 2 devices are 4 on each, 2 in a micro-batch.
    """
    section = {"dataset": {"max_length": 100}, "token_budget": 400, "groups_per_step": 8}
    found = assumed_workload(section, 2, "it is far away")
    assert found.batch.num_tokens == 400
    assert found.batch.num_groups == 3
    assert found.micro_batches == 2
    assert found.tokens == 600
    assert found.all_tokens == 1200
    assert found.source.endswith("100 tokens that share half of them: it is far away")


def test_more_devices_than_groups_leave_some_idle() -> None:
    section = {"dataset": {"max_length": 100}, "token_budget": 10, "groups_per_step": 8}
    found = assumed_workload(section, 16, "")
    assert found.batch.num_tokens == 150
    assert (found.tokens, found.micro_batches) == (150, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": {}}, r"train_dataloader\.dataset\.max_length must be a whole number above 0 .* got None"),
        ({"token_budget": 0}, r"train_dataloader\.token_budget .* got 0"),
        ({"groups_per_step": "8"}, r"train_dataloader\.groups_per_step .* got '8'"),
    ],
)
def test_lengths_that_are_none(change: dict[str, object], message: str) -> None:
    section = {"dataset": {"max_length": 100}, "token_budget": 400, "groups_per_step": 8, **change}
    with pytest.raises(ConfigError, match=message):
        assumed_workload(section, 2, "")
