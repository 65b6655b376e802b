"""Simple preference optimisation: the mean log-probability of a response is its reward, without a reference."""

from __future__ import annotations

from torch import Tensor

from xrlhf.losses.options import number_option
from xrlhf.losses.pairs import pairwise
from xrlhf.losses.policy.logistic import logistic
from xrlhf.losses.policy.logps import chosen_nll, existing_logps, token_means
from xrlhf.losses.policy.objective import ResponseLogps
from xrlhf.losses.policy.preference import PreferenceLoss
from xrlhf.registry import LOSSES

__all__ = ["SimPOLoss"]


@LOSSES.register_module()
class SimPOLoss(PreferenceLoss):
    """Negative log-likelihood of the preferences beyond a margin, the mean log-probability being the reward.

    For responses y_i, y_j of a prompt x with n_i and n_j tokens, i preferred, and e = ``label_smoothing``::

        r_i     = beta / n_i * log p(y_i | x)
        d_ij    = r_i - r_j - gamma
        loss_ij = -(1 - e) * log sigmoid(d_ij) - e * log sigmoid(-d_ij)

    ``nll_weight`` times the mean over the tokens of the best response of -log p is added, once for each group.

    Reduction: the mean over all pairs i < j of the group; pairs of equal ratings are left out; a group without a pair
    gives 0.

    Data:
        As for ``DPOLoss``.

    When:
        No memory for a reference model; answers that grow longer under DPO. Nothing holds the policy but a small
        learning rate.

    Args:
        beta: Scale of the reward, greater than 0. Means over tokens are small numbers: the paper uses 2 to 10, where
            losses on sums use 0.1.
        gamma: Margin asked for, 0 or greater, on the scale of the rewards. (The authors' code has ``gamma_beta_ratio``,
            gamma / beta, 0.5 as a start.)
        label_smoothing: e, 0 or greater and below 0.5: the share of pairs believed to be labelled the wrong way round.
        nll_weight: Weight of the language-model term, 0 or greater; with 1 it is known as CPO-SimPO.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Meng, Xia and Chen, arXiv 2405.14734, equation 6; huggingface/trl, trl/experimental/cpo/cpo_trainer.py, loss
        type simpo.
    """

    def __init__(
        self, beta: float = 2.0, gamma: float = 1.0, label_smoothing: float = 0.0, nll_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.beta = number_option("SimPOLoss", "beta", beta, exclusive=True)
        self.gamma = number_option("SimPOLoss", "gamma", gamma)
        self.label_smoothing = number_option("SimPOLoss", "label_smoothing", label_smoothing, below=0.5)
        self.nll_weight = number_option("SimPOLoss", "nll_weight", nll_weight)

    def forward(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group, (G,); see :class:`~xrlhf.losses.policy.objective.PolicyLoss`."""
        pairs = pairwise(self.rewards(policy, reference, mask), mask, ratings)
        losses = pairs.mean(logistic(pairs.differences - self.gamma, self.label_smoothing))
        if self.nll_weight:
            losses = losses + self.nll_weight * chosen_nll(policy, mask, ratings).values
        return losses

    def rewards(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor) -> Tensor:
        """(G, K), r of each response; 0 where there is none."""
        return self.beta * token_means(existing_logps(policy, mask), policy)

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta:g}, gamma={self.gamma:g}, label_smoothing={self.label_smoothing:g}, "
            f"nll_weight={self.nll_weight:g}"
        )
