"""The focal ranking loss: Bradley-Terry that spends less on pairs already told apart."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrlhf.losses.options import number_option
from xrlhf.losses.pairs import NEEDS_PREFERENCE, has_pair, pairwise
from xrlhf.registry import LOSSES

__all__ = ["FocalRankingLoss"]


@LOSSES.register_module()
class FocalRankingLoss(nn.Module):
    """Bradley-Terry loss, weighed down the more surely a pair is already ranked right.

    For a pair with the score difference d = s_i - s_j, i preferred::

        loss_ij = w(d) * -log sigmoid(d)
        w(d)    = (1 - 2 * relu(sigmoid(d) - 0.5)) ** gamma

    w is 1 for a pair that is ranked wrong or not at all (d <= 0), where the loss is plain Bradley-Terry, and
    (2 * sigmoid(-d)) ** gamma for d > 0, which is how it is computed here: the form above cancels to 0 in float32
    as soon as sigmoid(d) rounds to 1.

    Gradient: it flows through the whole expression, the weight included, as in the public implementation. For d > 0::

        weight differentiated (this loss)   dloss/dd = -w(d) * (sigmoid(-d) + gamma * sigmoid(d) * -log sigmoid(d))
        weight held constant                dloss/dd = -w(d) * sigmoid(-d)

    so the pull is up to 1 + gamma times as strong as with a constant weight. At d = 0 it steps from -1/2 (d <= 0) to
    -(1 + gamma * log 2) / 2, about -1.19 for gamma 2 (d just above 0).

    Reduction: the loss of a group is the mean over all its pairs i < j; pairs of equal ratings are left out; a group
    without a pair gives 0.

    Data:
        An order: two or more responses, best first.

    When:
        Many pairs are easy, and training on them is a waste: large, clean sets of comparisons.

    Args:
        gamma: How fast easy pairs lose weight, 0 or greater; 0 is Bradley-Terry. 2 is the published value. Raise it
            when training accuracy is high and the hard pairs stagnate; lower it when labels are noisy, because the
            pairs it concentrates on are then often the mislabelled ones.

    Raises:
        ConfigError: ``gamma`` is not a finite number of 0 or more.

    Reference:
        InternLM2, arXiv 2403.17297, section on reward models; InternLM/xtuner, xtuner/model/reward.py, focal_loss
        (gamma fixed at 2 there).
    """

    needs = NEEDS_PREFERENCE

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = number_option("FocalRankingLoss", "gamma", gamma)

    def forward(self, scores: Tensor, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group.

        Args:
            scores: (G, K) float32, best response first.
            mask: (G, K) bool, True where the response exists.
            ratings: (G, K) float32, NaN where the data has none; only used to leave out ties.

        Returns:
            (G,) float32.
        """
        pairs = pairwise(scores, mask, ratings)
        differences = pairs.differences
        # In logarithms the derivative stays finite for every gamma; a power of 0 has an infinite one for gamma < 1.
        log_weight = torch.where(
            differences > 0, math.log(2) + F.logsigmoid(-differences), torch.zeros_like(differences)
        )
        return pairs.mean(torch.exp(self.gamma * log_weight) * -F.logsigmoid(differences))

    def usable(self, mask: Tensor, ratings: Tensor) -> Tensor:
        """(G,) bool, True where a group has a pair; see :class:`~xrlhf.losses.objective.Objective`."""
        return has_pair(mask, ratings)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}"
