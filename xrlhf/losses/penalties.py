"""Penalties that fix what ranking leaves free: the level and the spread of the scores.

A ranking loss sees differences only, so the scores of a prompt may drift together without bound. A penalty has the
interface of a ranking loss and is added to it, group by group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xrlhf.errors import ConfigError
from xrlhf.losses.options import number_option
from xrlhf.losses.scores import existing_scores
from xrlhf.registry import LOSSES

__all__ = ["CenteringPenalty", "L2Penalty", "LogBarrierPenalty"]

# Below this share of the bound, float32 holds too few digits of the distance between a score and its bound.
_SMALLEST_RELATIVE_EPS = 1e-6


@LOSSES.register_module()
class LogBarrierPenalty(nn.Module):
    """A wall on both sides that keeps every score inside (-bound, bound).

    For each score x of the group, with the limit L = bound - eps::

        |x| <= L:  b(x) = -log(bound - x) - log(bound + x)
        |x| >  L:  b(L) + (|x| - L) * (1 / eps - 1 / (2 * bound - eps))

    The second line is the first-order Taylor expansion of the first at L: value and slope are continuous, and a score
    that got outside is pulled back with a constant force. (The public implementation clamps the score at L instead:
    the same value up to L, but no gradient beyond it, so that such a score never returns.) The value is negative for
    small scores when bound > 1; only its slope matters.

    Reduction: weight times the sum over the responses of the group. The weight is therefore per score against one
    ranking term per group, as in the public implementation, where a pair counts both its scores.

    Data:
        Any; it is added to a loss.

    When:
        Scores must stay in known bounds, as for a policy trained on them.

    Args:
        bound: Largest absolute score wanted, greater than 0. Widen it when you continue from a reward model whose
            scores already lie outside, otherwise the wall outweighs the ranking.
        weight: Factor of the penalty, 0 or greater. Raise it when scores crowd at the bound, lower it when accuracy
            suffers.
        eps: Distance from the bound where the wall becomes straight, greater than 0 and smaller than ``bound``. The
            pull outside is about weight / eps (10 by default): raise eps if single scores outside dominate the
            gradient norm.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        InternLM2, arXiv 2403.17297, section on reward models; InternLM/xtuner, xtuner/model/reward.py,
        log_barrier_penalty (bound 5, eps 1e-3, weight 0.01).
    """

    def __init__(self, bound: float = 5.0, weight: float = 0.01, eps: float = 1e-3) -> None:
        super().__init__()
        self.bound = number_option("LogBarrierPenalty", "bound", bound, exclusive=True)
        self.weight = number_option("LogBarrierPenalty", "weight", weight)
        self.eps = number_option("LogBarrierPenalty", "eps", eps, exclusive=True)
        if not self.bound * _SMALLEST_RELATIVE_EPS <= self.eps < self.bound:
            raise ConfigError(
                f"LogBarrierPenalty: eps is {eps!r} with bound {bound!r}; accepted is a number smaller than the bound "
                "and at least a millionth of it, which float32 can still tell from the bound"
            )

    def forward(self, scores: Tensor, mask: Tensor, ratings: Tensor) -> Tensor:
        """The penalty of each group.

        Args:
            scores: (G, K) float32.
            mask: (G, K) bool, True where the response exists.
            ratings: (G, K) float32, not used.

        Returns:
            (G,) float32.
        """
        size = existing_scores(scores, mask, ratings).abs()
        limit = self.bound - self.eps
        slope = 1.0 / self.eps - 1.0 / (2.0 * self.bound - self.eps)
        outside = size > limit
        inner = torch.where(outside, torch.full_like(size, limit), size)
        excess = torch.where(outside, size - limit, torch.zeros_like(size))
        barrier = -torch.log(self.bound - inner) - torch.log(self.bound + inner) + slope * excess
        return self.weight * barrier.masked_fill(~mask, 0.0).sum(dim=1)

    def extra_repr(self) -> str:
        return f"bound={self.bound:g}, weight={self.weight:g}, eps={self.eps:g}"


@LOSSES.register_module()
class L2Penalty(nn.Module):
    """Pulls every score towards 0.

    For the scores x of the group::

        weight * sum of x^2

    Unlike the log barrier it acts everywhere, so it also shrinks the differences that ranking wants to grow.

    Data:
        Any; it is added to a loss.

    When:
        Scores grow without bound and bounds as such are not needed.

    Args:
        weight: Factor of the penalty, 0 or greater. Raise it when scores grow without bound, lower it when the
            margin stays small.

    Raises:
        ConfigError: ``weight`` is not a finite number of 0 or more.

    Reference:
        InternLM/xtuner, xtuner/model/reward.py, l2_penalty (weight 0.01).
    """

    def __init__(self, weight: float = 0.01) -> None:
        super().__init__()
        self.weight = number_option("L2Penalty", "weight", weight)

    def forward(self, scores: Tensor, mask: Tensor, ratings: Tensor) -> Tensor:
        """The penalty of each group.

        Args:
            scores: (G, K) float32.
            mask: (G, K) bool, True where the response exists.
            ratings: (G, K) float32, not used.

        Returns:
            (G,) float32.
        """
        return self.weight * existing_scores(scores, mask, ratings).square().sum(dim=1)

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}"


@LOSSES.register_module()
class CenteringPenalty(nn.Module):
    """Keeps the scores of a prompt centred.

    For the scores x of the group::

        weight * (sum of x)^2

    For a pair this is weight * (c + r)^2. It fixes the level and leaves differences free, so it never works against
    the ranking loss. The sum, not the mean, is squared: with K responses the pull on the mean grows with K^2.

    Data:
        Any; it is added to a loss on preferences.

    When:
        Scores of different prompts are compared, and their level must not drift.

    Args:
        weight: Factor of the penalty, 0 or greater. Raise it when the mean score drifts during training or differs
            much between prompts whose answers are equally good; 0.01 is the published advice.

    Raises:
        ConfigError: ``weight`` is not a finite number of 0 or more.

    Reference:
        arXiv 2312.09244, the regulariser on the sum of the two rewards; huggingface/trl,
        trl/trainer/reward_trainer.py, center_rewards_coefficient.
    """

    def __init__(self, weight: float = 0.01) -> None:
        super().__init__()
        self.weight = number_option("CenteringPenalty", "weight", weight)

    def forward(self, scores: Tensor, mask: Tensor, ratings: Tensor) -> Tensor:
        """The penalty of each group.

        Args:
            scores: (G, K) float32.
            mask: (G, K) bool, True where the response exists.
            ratings: (G, K) float32, not used.

        Returns:
            (G,) float32.
        """
        return self.weight * existing_scores(scores, mask, ratings).sum(dim=1).square()

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}"
