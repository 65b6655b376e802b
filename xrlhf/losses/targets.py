"""The entrance of losses that compare every output with a target."""

from __future__ import annotations

import torch
from torch import Tensor

from xrlhf.losses.objective import Targets

__all__ = ["NEEDS_TARGET", "existing_targets", "has_target"]

NEEDS_TARGET = (
    "it needs a rating (or, with an attribute head, attributes) for each response: choose a map function that reads "
    "them, or a loss on the order of the responses such as RankingLoss"
)
"""What the losses on targets say of data without any."""


def existing_targets(outputs: Tensor, mask: Tensor, targets: Tensor) -> Targets:
    """Outputs and targets at least in float32, with 0 in both wherever there is nothing to compare.

    They are replaced before any arithmetic, so that neither an absent response nor a missing target can reach a value
    or a gradient.

    Args:
        outputs: (G, K) or (G, K, A) float.
        mask: (G, K) bool, True where the response exists.
        targets: Of the shape of ``outputs``, NaN where the data has none.

    Raises:
        ValueError: The shapes do not fit together, or a dtype is wrong.
    """
    if outputs.dim() not in (2, 3) or outputs.shape != targets.shape or outputs.shape[:2] != mask.shape:
        raise ValueError(
            "outputs and targets must both be (groups, responses) or (groups, responses, attributes) and mask (groups, "
            f"responses), but their shapes are {tuple(outputs.shape)}, {tuple(targets.shape)} and {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be a bool tensor (True where the response exists), not {mask.dtype}")
    if not outputs.is_floating_point() or not targets.is_floating_point():
        raise ValueError(f"outputs and targets must be floating point, not {outputs.dtype} and {targets.dtype}")
    if outputs.dtype in (torch.float16, torch.bfloat16):
        outputs = outputs.float()
    counted = _counted(mask, targets)
    return Targets(outputs.masked_fill(~counted, 0.0), targets.masked_fill(~counted, 0.0).to(outputs.dtype), counted)


def has_target(mask: Tensor, targets: Tensor) -> Tensor:
    """(G,) bool, True where a group has a response with a target."""
    return _counted(mask, targets).flatten(1).any(dim=1)


def _counted(mask: Tensor, targets: Tensor) -> Tensor:
    exists = mask if targets.dim() == 2 else mask.unsqueeze(2)
    return exists & ~targets.isnan()
