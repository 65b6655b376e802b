"""What a step brings to one device: its largest micro-batch, how many there are, and how many tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xrlhf.data.loader import StepLoader
from xrlhf.data.packing import pack
from xrlhf.data.plan import GroupStream, deal
from xrlhf.data.prompts import PromptLoader
from xrlhf.errors import ConfigError
from xrlhf.structures import PackedBatch, TokenizedGroup

__all__ = [
    "AssumedPrompts",
    "RolloutShape",
    "Workload",
    "assumed_workload",
    "workload_of",
    "workload_of_rollouts",
]

_STEPS_LOOKED_AT = 64
_ROLLOUTS_LOOKED_AT = 16
_SHORTEST_GROUP = 8


@dataclass(frozen=True)
class Workload:
    """A step, as one device sees it.

    Args:
        batch: The largest micro-batch.
        micro_batches: Forward and backward passes of a step.
        tokens: Tokens that the busiest device computes in a step, on average.
        all_tokens: Tokens of a step over all devices.
        source: Where this is from, in words.
        groups_option: The recipe's option for how many groups there are at once.
    """

    batch: PackedBatch
    micro_batches: int
    tokens: float
    all_tokens: float
    source: str
    groups_option: str = "groups_per_step"


@dataclass(frozen=True)
class RolloutShape:
    """What one device has of a rollout, where every answer is as long as it may be.

    Args:
        prompts: Prompts, at most.
        num_answers: Answers to each.
        longest_prompt: Tokens of the longest prompt.
        mean_prompt: Tokens of a prompt on average.
        new_tokens: Most tokens of an answer.
        steps: Optimizer steps on the rollout.
    """

    prompts: int
    num_answers: int
    longest_prompt: int
    mean_prompt: int
    new_tokens: int
    steps: int

    @property
    def group_tokens(self) -> int:
        """Tokens of a prompt and its answers, on average."""
        return self.mean_prompt + self.num_answers * self.new_tokens

    def group_batch(self, number: int = 1) -> PackedBatch:
        """So many prompts of mean length with their answers."""
        return pack([_drawn(self.mean_prompt, self.num_answers, self.new_tokens)] * number)


class AssumedPrompts:
    """Prompts of one length, where the data is not at hand.

    Args:
        dataset: The recipe's section of the data set.
        number: How many there are.

    Raises:
        ConfigError: Its ``max_length`` is no whole number above 0.
    """

    def __init__(self, dataset: Mapping[str, Any], number: int) -> None:
        self.max_length = _whole("train_dataloader.dataset.max_length", dataset.get("max_length"))
        self.number = number

    def num_tokens(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Of all of them, or of some."""
        return np.full(self.number if indices is None else len(indices), self.max_length, dtype=np.int64)

    def stream(self, seed: int, shuffle: bool = True) -> GroupStream:
        """The order in which they come."""
        return GroupStream([self.number], [1.0], seed=seed, shuffle=shuffle)


def workload_of_rollouts(
    loader: PromptLoader, *, num_answers: int, new_tokens: int, epochs: int, minibatches: int, why: str | None = None
) -> tuple[Workload, RolloutShape]:
    """What the prompts of the first rollouts say, where every answer is as long as it may be.

    Args:
        loader: For as many processes as there are to be devices.
        num_answers: Answers to each prompt.
        new_tokens: Most tokens of an answer.
        epochs: How often a rollout is gone through.
        minibatches: Steps of each time.
        why: Why the prompts are :class:`AssumedPrompts`, where they are.
    """
    sizes = loader.dataset.num_tokens()
    most, largest, micro_batches = 0, np.array([int(sizes.argmax())]), 1
    busiest, everywhere = [], []
    rollouts = max(1, min(_ROLLOUTS_LOOKED_AT, loader.num_rollouts(1)))
    for rollout in range(rollouts):
        for members in np.array_split(loader.prompt_ids(rollout), minibatches):
            lengths = sizes[members] + num_answers * new_tokens
            plan = deal(members, lengths, world_size=loader.world_size, token_budget=loader.token_budget)
            micro_batches = max(micro_batches, len(plan.micro_batches[0]))
            by_rank = []
            for of_rank in plan.micro_batches:
                by_rank.append(0)
                for micro_batch in of_rank:
                    tokens = int((sizes[micro_batch.group_ids] + num_answers * new_tokens).sum())
                    by_rank[-1] += tokens
                    if tokens > most:
                        most, largest = tokens, micro_batch.group_ids
            busiest.append(max(by_rank))
            everywhere.append(int(lengths.sum()))
    answers = f"answers of {new_tokens:,} tokens, the most allowed"
    source = f"the prompts of the first {rollouts} rollout(s), with {answers}"
    if why is not None:
        source = f"assumed, prompts of {int(sizes.max()):,} tokens with {answers}: {why}"
    workload = Workload(
        batch=pack([_drawn(int(sizes[prompt]), num_answers, new_tokens) for prompt in largest]),
        micro_batches=micro_batches,
        tokens=float(np.mean(busiest)),
        all_tokens=float(np.mean(everywhere)),
        source=source,
        groups_option="prompts_per_rollout",
    )
    shape = RolloutShape(
        prompts=math.ceil(loader.prompts_per_rollout / loader.world_size),
        num_answers=num_answers,
        longest_prompt=int(sizes.max()),
        mean_prompt=max(1, round(float(sizes.mean()))),
        new_tokens=new_tokens,
        steps=epochs * minibatches,
    )
    return workload, shape


def _drawn(prompt: int, num_answers: int, new_tokens: int) -> TokenizedGroup:
    """A prompt and answers, all of whose tokens are targets."""
    is_target = np.arange(prompt + num_answers * new_tokens) >= prompt
    answers = (np.zeros(new_tokens, np.int32),) * num_answers
    return TokenizedGroup(np.zeros(prompt, np.int32), answers, is_target=is_target)


def workload_of(loader: StepLoader) -> Workload:
    """What the data says: the plans of the first steps, and the longest group of all.

    Args:
        loader: For as many processes as there are to be devices.
    """
    sizes = loader.dataset.num_tokens()
    steps = min(len(loader), _STEPS_LOOKED_AT)
    most, members, micro_batches = 0, np.array([int(sizes.argmax())]), 1
    busiest, everywhere = [], []
    for step in range(steps):
        plan = loader.plan(step)
        micro_batches = max(micro_batches, len(plan.micro_batches[0]))
        by_rank = []
        for of_rank in plan.micro_batches:
            by_rank.append(0)
            for micro_batch in of_rank:
                tokens = int(sizes[micro_batch.group_ids].sum())
                by_rank[-1] += tokens
                if tokens > most:
                    most, members = tokens, micro_batch.group_ids
        busiest.append(max(by_rank))
        everywhere.append(int(sizes[loader.group_ids(step)].sum()))
    longest = int(sizes.argmax())
    if int(sizes[longest]) > most:
        members = np.array([longest])
    return Workload(
        batch=pack([loader.dataset[int(group)] for group in members]),
        micro_batches=micro_batches,
        tokens=float(np.mean(busiest)),
        all_tokens=float(np.mean(everywhere)),
        source=f"the data; the first {steps} step(s) and the longest group were looked at",
    )


def assumed_workload(loader_section: Mapping[str, Any], num_devices: int, why: str) -> Workload:
    """Where the data is not at hand: pairs of conversations of the most tokens allowed that share half of them.

    Args:
        loader_section: The recipe's ``train_dataloader``.
        num_devices: How many devices share a step.
        why: Why the data is not at hand.

    Raises:
        ConfigError: A length that is no whole number above 0.
    """
    dataset = loader_section.get("dataset") or {}
    given = {
        "train_dataloader.dataset.max_length": dataset.get("max_length"),
        "train_dataloader.token_budget": loader_section.get("token_budget"),
        "train_dataloader.groups_per_step": loader_section.get("groups_per_step"),
    }
    max_length, token_budget, groups_per_step = (_whole(name, value) for name, value in given.items())
    prompt = max_length // 2
    response = max(1, max_length - prompt)
    group = prompt + 2 * response
    per_batch = max(1, token_budget // group)
    groups = [_group(prompt, response)] * per_batch
    # A step will come that fills a micro-batch to the end.
    if (left := token_budget - per_batch * group) >= _SHORTEST_GROUP:
        groups.append(_group(left - 2 * (left // 3), left // 3))
    per_device = math.ceil(groups_per_step / num_devices)
    return Workload(
        batch=pack(groups),
        micro_batches=math.ceil(per_device / per_batch),
        tokens=float(per_device * group),
        all_tokens=float(groups_per_step * group),
        source=f"assumed, pairs of conversations of {max_length:,} tokens that share half of them: {why}",
    )


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a whole number above 0 to plan with, got {value!r}")
    return value


def _group(prompt: int, response: int) -> TokenizedGroup:
    # A policy learns all of both responses.
    is_target = np.arange(prompt + 2 * response) >= max(prompt, 1)
    return TokenizedGroup(np.zeros(prompt, np.int32), (np.zeros(response, np.int32),) * 2, is_target=is_target)
