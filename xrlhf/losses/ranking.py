"""The Bradley-Terry ranking loss, with or without a margin."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrlhf.errors import ConfigError
from xrlhf.losses.options import number_option
from xrlhf.losses.pairs import Pairs, pairwise
from xrlhf.registry import LOSSES

__all__ = ["RankingLoss"]


def _rating_margins(pairs: Pairs, ratings: Tensor) -> Tensor:
    """(G, K, K): rating_i - rating_j for each pair, 0 where a rating is missing and where there is no pair."""
    margins = ratings.unsqueeze(2) - ratings.unsqueeze(1)
    known = pairs.mask & ~margins.isnan()
    return torch.where(known, margins, torch.zeros_like(margins)).to(pairs.differences.dtype)


@LOSSES.register_module()
class RankingLoss(nn.Module):
    """Negative log-likelihood of the preference order under the Bradley-Terry model.

    For a pair of responses (i, j) of one prompt, i preferred::

        loss_ij = -log sigmoid(s_i - s_j - m_ij)
        m_ij    = 0                                        margin="none"
        m_ij    = margin_scale * (rating_i - rating_j)     margin="ratings", 0 if either rating is missing

    Reduction: the loss of a group is the mean over all its pairs i < j, so that a prompt with nine answers weighs as
    much as a prompt with two. Pairs of equal ratings are left out; a group without a pair gives 0.

    Args:
        margin: "none" asks only for the right order. "ratings" asks for a distance that grows with the distance of
            the ratings: choose it when the ratings are graded and trustworthy, so that clear preferences pull
            harder than near ties; leave it at "none" for plain chosen/rejected data, where it changes nothing.
        margin_scale: Score units per rating unit, 0 or greater. Published margins are 1 to 3 for the clearest
            preference, so on a 1-to-10 scale start at 0.1 to 0.3; too large a value inflates the scores.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Mean over the pairs of a prompt: InstructGPT, arXiv 2203.02155, equation 1. Margin: Llama 2,
        arXiv 2307.09288, equation 2.
    """

    def __init__(self, margin: Literal["none", "ratings"] = "none", margin_scale: float = 1.0) -> None:
        super().__init__()
        if margin not in ("none", "ratings"):
            raise ConfigError(f"RankingLoss: margin is {margin!r}; accepted are 'none' and 'ratings'")
        self.margin = margin
        self.margin_scale = number_option("RankingLoss", "margin_scale", margin_scale)

    def forward(self, scores: Tensor, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group.

        Args:
            scores: (G, K) float32, best response first.
            mask: (G, K) bool, True where the response exists.
            ratings: (G, K) float32, NaN where the data has none.

        Returns:
            (G,) float32.
        """
        pairs = pairwise(scores, mask, ratings)
        differences = pairs.differences
        if self.margin == "ratings":
            differences = differences - self.margin_scale * _rating_margins(pairs, ratings)
        return pairs.mean(-F.logsigmoid(differences))

    def extra_repr(self) -> str:
        return f"margin={self.margin!r}, margin_scale={self.margin_scale:g}"
