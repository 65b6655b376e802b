"""What the scores of a group say about its ranking, for training logs and for evaluation alike."""

from __future__ import annotations

import torch
from torch import Tensor

from xrlhf.losses.pairs import pairwise
from xrlhf.losses.scores import existing_scores

__all__ = ["pair_statistics"]


@torch.no_grad()
def pair_statistics(scores: Tensor, mask: Tensor, ratings: Tensor) -> dict[str, Tensor]:
    """Accuracy, margin, score levels and ties of each group.

    The pairs are those of the losses: i < j, both responses exist, ratings not equal. Every value is the group's
    own, so sums over groups divided by ``(num_pairs > 0).sum()`` are exact means over any number of batches.

    Args:
        scores: (G, K) float, best response first; computed in their own precision, at least float32.
        mask: (G, K) bool, True where the response exists.
        ratings: (G, K) float, NaN where the data has none.

    Returns:
        Detached tensors (G,), by name:

        - ``accuracy``: share of the pairs with s_i > s_j; a pair of equal scores counts one half.
        - ``margin``: mean of s_i - s_j over the pairs.
        - ``tie_share``: share of the pairs with equal scores. 1 minus accuracy minus half of it is the share ranked
          wrong, and accuracy minus half of it is the strict accuracy that counts ties as wrong.
        - ``chosen_score``: score of the first response that exists; 0 where none does.
        - ``rejected_score``: mean score of the other responses; 0 where there is no other.
        - ``num_pairs``: int64. Where it is 0, accuracy, margin and tie_share are 0 and mean nothing.

    Raises:
        ValueError: Shapes or dtypes do not fit together.
    """
    pairs = pairwise(scores, mask, ratings)
    differences = pairs.differences
    tied = (differences == 0).to(differences.dtype)
    wins = (differences > 0).to(differences.dtype)

    present = existing_scores(scores, mask, ratings)
    is_first = mask & (mask.cumsum(dim=1) == 1)
    is_other = mask & ~is_first
    return {
        "accuracy": pairs.mean(wins + 0.5 * tied),
        "margin": pairs.mean(differences),
        "tie_share": pairs.mean(tied),
        "chosen_score": present.masked_fill(~is_first, 0.0).sum(dim=1),
        "rejected_score": present.masked_fill(~is_other, 0.0).sum(dim=1) / is_other.sum(dim=1).clamp(min=1),
        "num_pairs": pairs.num_pairs,
    }
