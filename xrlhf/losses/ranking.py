"""The Bradley-Terry ranking loss, with or without a margin and label smoothing."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrlhf.errors import ConfigError
from xrlhf.losses.options import number_option
from xrlhf.losses.pairs import NEEDS_PREFERENCE, Pairs, has_pair, pairwise
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

    For a pair of responses (i, j) of one prompt, i preferred, and e = ``label_smoothing``::

        d_ij    = s_i - s_j - m_ij
        loss_ij = -(1 - e) * log sigmoid(d_ij) - e * log sigmoid(-d_ij)
        m_ij    = 0                                        margin="none"
        m_ij    = margin_scale * (rating_i - rating_j)     margin="ratings", 0 if either rating is missing

    With e > 0 this is the expected loss where a label is wrong with probability e. It has its minimum at
    sigmoid(d) = 1 - e, so a pair is no longer pushed apart without end; e = 0 is plain Bradley-Terry.

    Reduction: the loss of a group is the mean over all its pairs i < j, so that a prompt with nine answers weighs as
    much as a prompt with two (InstructGPT's factor 1 / (K choose 2)). Pairs of equal ratings are left out; a group
    without a pair gives 0.

    Data:
        An order: two or more responses, best first.

    When:
        The default, for chosen and rejected answers and for rankings. Smoothing where labels are noisy, a margin where
        ratings are graded.

    Args:
        margin: "none" asks only for the right order. "ratings" asks for a distance that grows with the distance of
            the ratings: choose it when the ratings are graded and trustworthy, so that clear preferences pull
            harder than near ties; leave it at "none" for plain chosen/rejected data, where it changes nothing.
        margin_scale: Score units per rating unit, 0 or greater. Published margins are 1 to 3 for the clearest
            preference, so on a 1-to-10 scale start at 0.1 to 0.3; too large a value inflates the scores.
        label_smoothing: e, 0 or greater and below 0.5: the share of pairs believed to be labelled the wrong way
            round. Raise it (0.1 to 0.3) when annotators disagree and margins grow while held-out accuracy falls.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Bradley and Terry 1952. Mean over the pairs of a prompt: InstructGPT, arXiv 2203.02155, equation 1. Margin:
        Llama 2, arXiv 2307.09288, equation 2. Smoothing: the conservative loss of Mitchell, "A note on DPO with noisy
        preferences", 2023, on score differences.
    """

    needs = NEEDS_PREFERENCE

    def __init__(
        self,
        margin: Literal["none", "ratings"] = "none",
        margin_scale: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if margin not in ("none", "ratings"):
            raise ConfigError(f"RankingLoss: margin is {margin!r}; accepted are 'none' and 'ratings'")
        self.margin = margin
        self.margin_scale = number_option("RankingLoss", "margin_scale", margin_scale)
        self.label_smoothing = number_option("RankingLoss", "label_smoothing", label_smoothing, below=0.5)

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
        losses = -F.logsigmoid(differences)
        if self.label_smoothing:
            # -log sigmoid(-d) = d - log sigmoid(d), so the smoothed loss is the plain one plus e * d.
            losses = losses + self.label_smoothing * differences
        return pairs.mean(losses)

    def usable(self, mask: Tensor, ratings: Tensor) -> Tensor:
        """(G,) bool, True where a group has a pair; see :class:`~xrlhf.losses.objective.Objective`."""
        return has_pair(mask, ratings)

    def extra_repr(self) -> str:
        smoothing = f", label_smoothing={self.label_smoothing:g}" if self.label_smoothing else ""
        return f"margin={self.margin!r}, margin_scale={self.margin_scale:g}{smoothing}"
