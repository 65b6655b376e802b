"""What a step brings to one device: its largest micro-batch, how many there are, and how many tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xrlhf.data.loader import StepLoader
from xrlhf.data.packing import pack
from xrlhf.errors import ConfigError
from xrlhf.structures import PackedBatch, TokenizedGroup

__all__ = ["Workload", "assumed_workload", "workload_of"]

_STEPS_LOOKED_AT = 64
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
    """

    batch: PackedBatch
    micro_batches: int
    tokens: float
    all_tokens: float
    source: str


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
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be a whole number above 0 to plan with, got {value!r}")
    max_length, token_budget, groups_per_step = (int(value) for value in given.values())  # type: ignore[arg-type]
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


def _group(prompt: int, response: int) -> TokenizedGroup:
    # A policy learns all of both responses.
    is_target = np.arange(prompt + 2 * response) >= max(prompt, 1)
    return TokenizedGroup(np.zeros(prompt, np.int32), (np.zeros(response, np.int32),) * 2, is_target=is_target)
