"""The data side of training and evaluation: plans turned into packed batches, ahead of time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from xrlhf.data.dataset import GroupDataset
from xrlhf.data.mismatch import mismatched_batches
from xrlhf.data.packing import pack
from xrlhf.data.permutation import Permutation, derive_key
from xrlhf.data.plan import StepPlan, deal, plan_whole_set
from xrlhf.data.prefetch import prefetch
from xrlhf.errors import ConfigError
from xrlhf.structures import PackedBatch

__all__ = ["EvalBatch", "EvalLoader", "StepBatches", "StepLoader"]


@dataclass(frozen=True)
class StepBatches:
    """One optimizer step as this rank sees it.

    Args:
        step: The step, counted from 0.
        num_groups: Groups of the step over all ranks: what the loss is divided by.
        batches: This rank's micro-batches.
        num_responses: Responses of this rank's groups, filler left out.
        num_tokens: Tokens this rank computes, filler left out.
        num_targets: Target tokens of the step over all ranks, a group counted as often as the step holds it.
        mismatched: This rank's share of the step's prompts with answers of other groups, for losses that look at
            them; they count in none of the numbers above.
        num_step_responses: Responses of the step over all ranks.
    """

    step: int
    num_groups: int
    batches: tuple[PackedBatch, ...]
    num_responses: int
    num_tokens: int
    num_targets: int = 0
    mismatched: tuple[PackedBatch, ...] = ()
    num_step_responses: int = 0

    def num_units(self, unit: str) -> int:
        """What the loss of the step is divided by: its ``"groups"``, its ``"targets"`` or its ``"responses"``."""
        counts = {"groups": self.num_groups, "targets": self.num_targets, "responses": self.num_step_responses}
        return counts[unit]


class StepLoader:
    """Micro-batches for every optimizer step, by step number.

    Args:
        dataset: The training set.
        groups_per_step: Groups of one optimizer step over all ranks.
        token_budget: Most tokens of one micro-batch.
        seed: Seed of the order.
        shuffle: False visits the groups in file order.
        rank: This process.
        world_size: All processes.

    Attributes:
        makes_mismatched: Whether steps come with mismatched answers; whoever knows the loss sets it.
    """

    def __init__(
        self,
        dataset: GroupDataset,
        *,
        groups_per_step: int,
        token_budget: int,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if groups_per_step < 1 or token_budget < 1:
            raise ConfigError(
                f"groups_per_step and token_budget must be at least 1, got {groups_per_step} and {token_budget}"
            )
        self.dataset = dataset
        self.groups_per_step = groups_per_step
        self.token_budget = token_budget
        self.rank = rank
        self.world_size = world_size
        self.stream = dataset.stream(seed, shuffle)
        self.makes_mismatched = False

    def __len__(self) -> int:
        """Optimizer steps of one epoch, the last of which may reach into the next."""
        return math.ceil(self.stream.epoch_size / self.groups_per_step)

    def num_steps(self, max_epochs: float) -> int:
        """Optimizer steps of ``max_epochs`` epochs."""
        return math.ceil(round(self.stream.epoch_size * max_epochs) / self.groups_per_step)

    def group_ids(self, step: int) -> np.ndarray:
        """The groups of a step, whatever the number of ranks."""
        return self.stream(step * self.groups_per_step, (step + 1) * self.groups_per_step)

    def plan(self, step: int) -> StepPlan:
        """How the groups of a step are dealt to ranks and micro-batches."""
        ids = self.group_ids(step)
        return deal(ids, self.dataset.num_tokens(ids), world_size=self.world_size, token_budget=self.token_budget)

    def load(self, step: int) -> StepBatches:
        """This rank's packed batches of a step."""
        plan = self.plan(step)
        batches = tuple(
            pack(
                [self.dataset[int(i)] for i in micro_batch.group_ids],
                group_ids=micro_batch.group_ids,
                weights=micro_batch.weights,
            )
            for micro_batch in plan.micro_batches[self.rank]
        )
        counted = [batch for batch in batches if bool(batch.group_weights.any())]
        return StepBatches(
            step,
            plan.num_groups,
            batches,
            num_responses=sum(int(batch.response_mask.sum()) for batch in counted),
            num_tokens=sum(batch.num_tokens for batch in counted),
            num_targets=int(self.dataset.num_targets(self.group_ids(step)).sum()),
            mismatched=self._mismatched(step) if self.makes_mismatched else (),
        )

    def _mismatched(self, step: int) -> tuple[PackedBatch, ...]:
        # In the order of the step, which no number of ranks and no token budget changes.
        return mismatched_batches(
            [self.dataset[int(i)] for i in self.group_ids(step)],
            max_length=self.dataset.encoder.max_length,
            token_budget=self.token_budget,
            rank=self.rank,
            world_size=self.world_size,
        )

    def steps(self, start: int, stop: int) -> Iterator[StepBatches]:
        """Steps ``start:stop`` in order, packed by a thread while the device computes."""
        return prefetch(self.load(step) for step in range(start, stop))


@dataclass(frozen=True)
class EvalBatch:
    """A packed batch of an evaluation set, and the source each group came from: (G,) int64.

    ``is_counted`` is False for a batch that only keeps this process in step with the others.
    """

    batch: PackedBatch
    datasets: np.ndarray
    is_counted: bool = True


class EvalLoader:
    """Every group of a set exactly once, in batches under a token budget, as many on every process.

    Args:
        dataset: The evaluation set.
        token_budget: Most tokens of one batch.
        rank: This process.
        world_size: All processes.
    """

    def __init__(self, dataset: GroupDataset, *, token_budget: int, rank: int = 0, world_size: int = 1) -> None:
        if token_budget < 1:
            raise ConfigError(f"token_budget must be at least 1, got {token_budget}")
        self.dataset = dataset
        self.token_budget = token_budget
        self.rank = rank
        self.world_size = world_size
        plan = plan_whole_set(dataset.num_tokens(), world_size=world_size, token_budget=token_budget)
        self._batches = [(ids, True) for ids in plan[rank]]
        # The first process has the most, by one at most; models that are split over processes run on all or none.
        if len(plan[0]) > len(plan[rank]):
            self._batches.append((plan[0][-1][-1:], False))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[EvalBatch]:
        return prefetch(self._load(ids, is_counted) for ids, is_counted in self._batches)

    def mismatched(self) -> tuple[PackedBatch, ...]:
        """This process's share of the set's prompts with answers of other groups.

        Which are put together is drawn once and for all: neighbours in a file often share their prompt.
        """
        order = Permutation(len(self.dataset), derive_key("mismatch"))(np.arange(len(self.dataset)))
        return mismatched_batches(
            [self.dataset[int(i)] for i in order],
            max_length=self.dataset.encoder.max_length,
            token_budget=self.token_budget,
            rank=self.rank,
            world_size=self.world_size,
        )

    def _load(self, ids: np.ndarray, is_counted: bool) -> EvalBatch:
        groups = [self.dataset[int(i)] for i in ids]
        return EvalBatch(pack(groups, group_ids=ids), np.array([group.dataset for group in groups]), is_counted)
