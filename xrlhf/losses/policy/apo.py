"""Anchored preference optimisation: which way the probability of each answer goes is chosen, not left open."""

from __future__ import annotations

from torch import Tensor

from xrlhf.losses.pairs import pairwise
from xrlhf.losses.policy.objective import ResponseLogps
from xrlhf.losses.policy.preference import RatioLoss
from xrlhf.registry import LOSSES

__all__ = ["APODownLoss", "APOZeroLoss"]


@LOSSES.register_module()
class APOZeroLoss(RatioLoss):
    """Makes the chosen answers likelier and the rejected ones less likely, each measured by itself.

    For responses y_i, y_j of a prompt x, i preferred::

        r_i     = beta * (log p(y_i | x) - log p_ref(y_i | x))
        loss_ij = 1 - sigmoid(r_i) + sigmoid(r_j)

    Reduction: the mean over all pairs i < j of the group, so that of four answers the second is chosen once against
    the third and once against the fourth, and rejected once; pairs of equal ratings are left out; a group without a
    pair gives 0.

    Data:
        As for ``DPOLoss``. For single rated responses ``KTOLoss(estimate_kl=False)`` is the same.

    When:
        The chosen answers are better than those of the policy, as from a stronger model.

    Args:
        beta: Strength of the tie to the reference, greater than 0.

    Raises:
        ConfigError: ``beta`` is not such a number.

    Reference:
        D'Oosterlinck et al., arXiv 2408.06266, equation 7.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def forward(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group, (G,); see :class:`~xrlhf.losses.policy.objective.PolicyLoss`."""
        rewards = self.rewards(policy, reference, mask)
        pairs = pairwise(rewards, mask, ratings)
        # 1 - sigmoid(r) = sigmoid(-r), which keeps its digits where r is large.
        return pairs.mean((-rewards).sigmoid().unsqueeze(2) + rewards.sigmoid().unsqueeze(1))

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}"


@LOSSES.register_module()
class APODownLoss(RatioLoss):
    """Makes the chosen answers less likely, and the rejected ones still less.

    For responses y_i, y_j of a prompt x, i preferred::

        r_i     = beta * (log p(y_i | x) - log p_ref(y_i | x))
        loss_ij = sigmoid(r_i) + 1 - sigmoid(r_i - r_j)

    Reduction: the mean over all pairs i < j of the group; pairs of equal ratings are left out; a group without a pair
    gives 0.

    Data:
        As for ``DPOLoss``.

    When:
        The policy is better than the chosen answers already, and only which of two is worse can be learnt.

    Args:
        beta: Strength of the tie to the reference, greater than 0.

    Raises:
        ConfigError: ``beta`` is not such a number.

    Reference:
        D'Oosterlinck et al., arXiv 2408.06266, equation 8.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def forward(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group, (G,); see :class:`~xrlhf.losses.policy.objective.PolicyLoss`."""
        rewards = self.rewards(policy, reference, mask)
        pairs = pairwise(rewards, mask, ratings)
        return pairs.mean(rewards.sigmoid().unsqueeze(2) + (-pairs.differences).sigmoid())

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}"
