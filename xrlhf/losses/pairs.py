"""The pairs of responses inside a group that say which one is preferred."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xrlhf.losses.scores import existing_scores

__all__ = ["Pairs", "pairwise"]


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
    num_responses = scores.shape[1]
    in_order = torch.ones(num_responses, num_responses, dtype=torch.bool, device=scores.device).triu(diagonal=1)
    # NaN equals nothing, so a response without a rating is never part of a tie.
    tied = ratings.unsqueeze(2) == ratings.unsqueeze(1)
    pair_mask = mask.unsqueeze(2) & mask.unsqueeze(1) & in_order & ~tied
    differences = scores.unsqueeze(2) - scores.unsqueeze(1)
    return Pairs(
        differences=torch.where(pair_mask, differences, torch.zeros_like(differences)),
        mask=pair_mask,
        num_pairs=pair_mask.sum(dim=(1, 2)),
    )
