"""The entrance of every loss on group scores: shapes checked, precision kept, absent responses made harmless."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["existing_scores"]


def existing_scores(scores: Tensor, mask: Tensor, ratings: Tensor) -> Tensor:
    """The scores, at least in float32, with 0 wherever no response exists.

    Absent entries are replaced before any arithmetic, not after it: a later product with 0 would turn the infinite
    derivative of a non-linearity into NaN.

    Args:
        scores: (G, K) float; what stands at absent responses is never looked at and gets a gradient of exactly 0.
            Half precision is raised to float32, because one rounding step of it decides about ties.
        mask: (G, K) bool, True where the response exists.
        ratings: (G, K) float, only its shape is checked here.

    Returns:
        (G, K) float32 or float64.

    Raises:
        ValueError: The three shapes differ or are not (G, K), or a dtype is wrong.
    """
    if scores.dim() != 2 or scores.shape != mask.shape or scores.shape != ratings.shape:
        raise ValueError(
            "scores, mask and ratings must all be (groups, responses), but their shapes are "
            f"{tuple(scores.shape)}, {tuple(mask.shape)} and {tuple(ratings.shape)}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be a bool tensor (True where the response exists), not {mask.dtype}")
    if not scores.is_floating_point() or not ratings.is_floating_point():
        raise ValueError(f"scores and ratings must be floating point, not {scores.dtype} and {ratings.dtype}")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    return scores.masked_fill(~mask, 0.0)
