"""Identity preference optimisation: a preference asks for a distance, not for all that can be had."""

from __future__ import annotations

from torch import Tensor

from xrlhf.losses.pairs import pairwise
from xrlhf.losses.policy.logps import log_ratios
from xrlhf.losses.policy.objective import ResponseLogps
from xrlhf.losses.policy.preference import RatioLoss
from xrlhf.registry import LOSSES

__all__ = ["IPOLoss"]


@LOSSES.register_module()
class IPOLoss(RatioLoss):
    """Squared distance of the difference of two log-ratios from a goal.

    For responses y_i, y_j of a prompt x with n_i and n_j tokens, i preferred::

        h_i     = (log p(y_i | x) - log p_ref(y_i | x)) / n_i        per_token=True
        h_i     = log p(y_i | x) - log p_ref(y_i | x)                per_token=False
        loss_ij = (h_i - h_j - 1 / (2 * beta)) ** 2

    The paper is written for whole responses. Means over tokens are what huggingface/trl and InternLM/xtuner compute,
    the former saying that the authors confirmed it; OpenRLHF computes sums. beta has not the same meaning in the two:
    the goal 1 / (2 * beta) is a distance for each token, or for the whole response.

    Reduction: the mean over all pairs i < j of the group; pairs of equal ratings are left out; a group without a pair
    gives 0.

    Data:
        As for ``DPOLoss``.

    When:
        Preferences are (nearly) always the same way, where DPO goes on pushing and leaves the reference behind.

    Args:
        beta: Strength of the tie to the reference, greater than 0; tau of the paper. 0.1 asks for a distance of 5.
        per_token: Compare means over tokens, not sums.

    Its metrics are of beta * h: the margin that the loss asks for is then 0.5, whatever beta is.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Azar et al., arXiv 2310.12036, equation 17; huggingface/trl, trl/trainer/dpo_trainer.py, loss type ipo.
    """

    def __init__(self, beta: float = 0.1, per_token: bool = True) -> None:
        super().__init__(beta, per_token)

    def forward(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group, (G,); see :class:`~xrlhf.losses.policy.objective.PolicyLoss`."""
        pairs = pairwise(log_ratios(policy, reference, mask, per_token=self.per_token), mask, ratings)
        return pairs.mean((pairs.differences - 1 / (2 * self.beta)).square())

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, per_token={self.per_token}"
