"""The pairs of responses inside a group that say which one is preferred."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xrlhf.losses.scores import existing_scores

__all__ = ["NEEDS_PREFERENCE", "Pairs", "has_pair", "pairwise", "tied_pairs"]

NEEDS_PREFERENCE = (
    "it needs groups of two or more responses that are not all rated alike; for single rated responses choose "
    "RegressionLoss or BinaryLoss"
)
"""What the losses on preferences say of data without any."""


@dataclass(frozen=True)
class Pairs:
    """All preference pairs of a batch of groups.

    Args:
        differences: (G, K, K), entry [g, i, j] is s_i - s_j where (i, j) is a pair of group g, else exactly 0.
        mask: (G, K, K) bool, True where response i is preferred to response j.
        num_pairs: (G,) int64, pairs of each group.
    """

    differences: Tensor
    mask: Tensor
    num_pairs: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean of ``values`` over the pairs of each group.

        Args:
            values: (G, K, K) float, one value per entry; entries that are no pair do not count.

        Returns:
            (G,), 0 for a group without a pair.
        """
        totals = torch.where(self.mask, values, torch.zeros_like(values)).sum(dim=(1, 2))
        return totals / self.num_pairs.clamp(min=1)


def pairwise(scores: Tensor, mask: Tensor, ratings: Tensor) -> Pairs:
    """Score differences of all pairs in which the first response is preferred to the second.

    The order of the responses is the preference: (i, j) is a pair when i < j and both exist, unless both are rated
    and the ratings are equal (a tie carries no preference). Ratings never turn a pair round.

    Args:
        scores: (G, K) float, best response first.
        mask: (G, K) bool, True where the response exists.
        ratings: (G, K) float, NaN where the data has none.

    Returns:
        The pairs; no entry outside them passes a gradient.

    Raises:
        ValueError: Shapes or dtypes do not fit together.
    """
    scores = existing_scores(scores, mask, ratings)
    return _pairs(scores, _both_exist(mask) & ~_tied(ratings))


def tied_pairs(scores: Tensor, mask: Tensor, ratings: Tensor) -> Pairs:
    """Score differences of all pairs that are rated alike, each pair once.

    Args:
        scores: (G, K) float.
        mask: (G, K) bool, True where the response exists.
        ratings: (G, K) float, NaN where the data has none, which ties with nothing.

    Returns:
        As :func:`pairwise`; the mask says that neither response is preferred.

    Raises:
        ValueError: Shapes or dtypes do not fit together.
    """
    scores = existing_scores(scores, mask, ratings)
    return _pairs(scores, _both_exist(mask) & _tied(ratings))


def has_pair(mask: Tensor, ratings: Tensor) -> Tensor:
    """(G,) bool, True where a group holds a preference: two responses that are not rated alike."""
    return (_both_exist(mask) & ~_tied(ratings)).flatten(1).any(dim=1)


def _pairs(scores: Tensor, pair_mask: Tensor) -> Pairs:
    differences = scores.unsqueeze(2) - scores.unsqueeze(1)
    return Pairs(
        differences=torch.where(pair_mask, differences, torch.zeros_like(differences)),
        mask=pair_mask,
        num_pairs=pair_mask.sum(dim=(1, 2)),
    )


def _both_exist(mask: Tensor) -> Tensor:
    """(G, K, K) bool, True for i < j where both responses exist."""
    num_responses = mask.shape[1]
    in_order = torch.ones(num_responses, num_responses, dtype=torch.bool, device=mask.device).triu(diagonal=1)
    return mask.unsqueeze(2) & mask.unsqueeze(1) & in_order


def _tied(ratings: Tensor) -> Tensor:
    """(G, K, K) bool. NaN equals nothing, so a response without a rating is never part of a tie."""
    return ratings.unsqueeze(2) == ratings.unsqueeze(1)
