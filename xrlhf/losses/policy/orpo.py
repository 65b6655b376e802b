"""Odds-ratio preference optimisation: fine-tuning and preferences in one, without a reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xrlhf.losses.objective import GroupMean
from xrlhf.losses.options import number_option
from xrlhf.losses.pairs import pairwise
from xrlhf.losses.policy.logistic import logistic
from xrlhf.losses.policy.logps import chosen_nll, existing_logps, token_means
from xrlhf.losses.policy.objective import ResponseLogps
from xrlhf.losses.policy.preference import PreferenceLoss
from xrlhf.losses.statistics import pair_statistics
from xrlhf.registry import LOSSES

__all__ = ["ORPOLoss"]

# The odds of probability 1 are infinite; from here on rounding decides how large they are.
_LARGEST_LOG_PROBABILITY = -1e-6


@LOSSES.register_module()
class ORPOLoss(PreferenceLoss):
    """Language-model loss of the best response, plus the log-likelihood of an odds ratio in favour of it.

    For responses y_i, y_j of a prompt x with n_i and n_j tokens, i preferred, y_1 being the best response::

        P_i     = exp(log p(y_i | x) / n_i)
        d_ij    = log(P_i / (1 - P_i)) - log(P_j / (1 - P_j))
        loss_ij = -log sigmoid(d_ij)
        loss    = nll_weight * -log P_1 + beta * mean of loss_ij

    The language-model term reads the answer alone, as in InternLM/xtuner; huggingface/trl takes the mean over prompt
    and answer, over all tokens of a batch. The odds are the same in all three. Where P rounds to 1 its odds, and their
    slope, are held at those of log P = -1e-6.

    Reduction: the mean over all pairs i < j of the group, and the language-model term once for each group; pairs of
    equal ratings are left out; a group without a pair gives 0.

    Data:
        As for ``DPOLoss``.

    When:
        One stage from a base model, without fine-tuning before and without a reference model.

    Args:
        beta: Weight of the odds ratio, greater than 0; lambda of the paper.
        nll_weight: Weight of the language-model term, 0 or greater; 1 in the paper.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Hong, Lee and Thorne, arXiv 2403.07691, equations 4 to 7; huggingface/trl,
        trl/experimental/orpo/orpo_trainer.py.
    """

    def __init__(self, beta: float = 0.1, nll_weight: float = 1.0) -> None:
        super().__init__()
        self.beta = number_option("ORPOLoss", "beta", beta, exclusive=True)
        self.nll_weight = number_option("ORPOLoss", "nll_weight", nll_weight)

    def forward(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group, (G,); see :class:`~xrlhf.losses.policy.objective.PolicyLoss`."""
        pairs = pairwise(self.log_odds(policy, mask), mask, ratings)
        nll = chosen_nll(policy, mask, ratings).values
        return self.nll_weight * nll + self.beta * pairs.mean(logistic(pairs.differences))

    def log_odds(self, policy: ResponseLogps, mask: Tensor) -> Tensor:
        """(G, K), log(P / (1 - P)) of each response; it means nothing where there is none."""
        means = token_means(existing_logps(policy, mask), policy)
        # The value is held and the gradient is not: clamping alone would let go of a rejected response at P = 1.
        means = means + (means.clamp(max=_LARGEST_LOG_PROBABILITY) - means).detach()
        return means - _log1mexp(means)

    def rewards(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor) -> Tensor:
        """(G, K), beta * log P of each response; 0 where there is none."""
        return self.beta * token_means(existing_logps(policy, mask), policy)

    @torch.no_grad()
    def statistics(
        self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor
    ) -> dict[str, GroupMean]:
        """Those of :func:`~xrlhf.losses.policy.statistics.reward_statistics`, of beta * log P, and ``log_odds_ratio``.

        ``log_odds_ratio`` is the mean of d over the pairs of the group.
        """
        statistics = super().statistics(policy, reference, mask, ratings)
        margin = pair_statistics(self.log_odds(policy, mask), mask, ratings)["margin"]
        return {**statistics, "log_odds_ratio": GroupMean(margin, statistics["reward_margin"].counted)}

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, nll_weight={self.nll_weight:g}"


def _log1mexp(values: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, by whichever of two forms loses no digits."""
    return torch.where(values > -math.log(2), torch.log(-torch.expm1(values)), torch.log1p(-torch.exp(values)))
