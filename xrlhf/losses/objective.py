"""What a loss may say about itself beside its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["GroupMean", "Objective", "TargetObjective", "Targets", "counted_sums", "group_mean"]


class GroupMean(NamedTuple):
    """A metric of each group, and which groups have one.

    Args:
        values: (G,) float; what stands where nothing is counted means nothing.
        counted: (G,) bool, True where the group has a value.
    """

    values: Tensor
    counted: Tensor


class Targets(NamedTuple):
    """What a loss on targets compares, entry by entry.

    Args:
        predictions: The model's outputs, (G, K) or (G, K, A), at least float32.
        goals: What they ought to be, of the same shape and on the loss's own scale; 0 where not counted.
        counted: Of the same shape, True where the response exists and the data has a target for it.
    """

    predictions: Tensor
    goals: Tensor
    counted: Tensor


@runtime_checkable
class Objective(Protocol):
    """A loss that knows which data it can learn from.

    Any module with ``forward(outputs, mask, targets) -> (G,)`` can be a loss. With the members below as well, data it
    cannot learn from is refused before training, and its own metrics are logged. ``outputs`` and ``targets`` are
    (G, K) scores and ratings, or (G, K, A) predictions and attributes where the model has an attribute head.

    Two more methods are used where a loss has them: ``statistics(outputs, mask, targets)`` gives its metrics as
    :class:`GroupMean` by name, and ``problem(mask, targets)`` half a sentence on targets outside of its domain, or
    None.

    Attributes:
        needs: What the data has to have, and what to do where it has not, for an error message.
    """

    needs: str

    def usable(self, mask: Tensor, targets: Tensor) -> Tensor:
        """(G,) bool, True where the group has something to learn from."""
        ...


@runtime_checkable
class TargetObjective(Objective, Protocol):
    """A loss that compares every output with a target of its own."""

    def compared(self, outputs: Tensor, mask: Tensor, targets: Tensor) -> Targets:
        """What is compared with what."""
        ...


def group_mean(values: Tensor, counted: Tensor) -> GroupMean:
    """The mean of each group over what counts in it.

    Args:
        values: (G, ...) float, any number of entries for each group.
        counted: Of the same shape, bool.
    """
    kept = torch.where(counted, values, torch.zeros_like(values)).flatten(1).sum(dim=1)
    number = counted.flatten(1).sum(dim=1)
    return GroupMean(kept / number.clamp(min=1), number > 0)


def counted_sums(means: Mapping[str, GroupMean], weights: Tensor) -> dict[str, Tensor]:
    """Metrics of groups as sums over them, each beside its count, as :class:`~xrlhf.structures.LossOutput` has them.

    Args:
        means: A metric of each group, by name.
        weights: (G,) float32, 1 for a group that counts, 0 for filler.
    """
    sums = {}
    for name, (values, counted) in means.items():
        kept = counted * weights
        sums[name] = torch.where(kept > 0, values * kept, 0.0).sum()
        sums[f"num_{name}"] = kept.sum()
    return sums
