"""Direct preference optimisation: the policy itself, measured against a reference, is the reward model."""

from __future__ import annotations

import torch
from torch import Tensor

from xrlhf.losses.options import number_option
from xrlhf.losses.pairs import pairwise
from xrlhf.losses.policy.logistic import logistic
from xrlhf.losses.policy.logps import chosen_nll
from xrlhf.losses.policy.objective import ResponseLogps
from xrlhf.losses.policy.preference import RatioLoss
from xrlhf.registry import LOSSES

__all__ = ["DPOLoss", "HingeDPOLoss", "RobustDPOLoss"]


@LOSSES.register_module()
class DPOLoss(RatioLoss):
    """Negative log-likelihood of the preferences, the log-ratio to a reference model being the reward.

    For responses y_i, y_j of a prompt x, i preferred, and e = ``label_smoothing``::

        r_i     = beta * (log p(y_i | x) - log p_ref(y_i | x))
        d_ij    = r_i - r_j
        loss_ij = -(1 - e) * log sigmoid(d_ij) - e * log sigmoid(-d_ij)

    With ``per_token`` each r is divided by the number of tokens of its response, and ``nll_weight`` times the mean over
    the tokens of the best response of -log p is added, once for each group.

    Only differences of log-ratios count, so the probability of the chosen answer may fall as long as that of the
    rejected one falls faster; ``nll_weight`` holds it.

    Reduction: the mean over all pairs i < j of the group; pairs of equal ratings are left out; a group without a pair
    gives 0.

    Data:
        An order: two or more responses, best first.

    When:
        The default, for a policy that was fine-tuned on such answers before. Smoothing where labels are noisy,
        ``per_token`` where answers grow longer in training, ``nll_weight`` where the chosen answers grow unlikely.

    Args:
        beta: Strength of the tie to the reference, greater than 0: the smaller, the further the policy may move. 0.1
            is usual; with ``per_token`` it is larger by about the number of tokens.
        label_smoothing: e, 0 or greater and below 0.5: the share of pairs believed to be labelled the wrong way round.
            The best d is then log((1 - e) / e), no longer infinite.
        per_token: Compare means over tokens, not sums, so that a long answer counts no more than a short one.
        nll_weight: Weight of the language-model term, 0 or greater; published are 0.2 (Llama 3) and 1 (iterative RPO).

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Rafailov et al., arXiv 2305.18290, equation 7. Smoothing: Mitchell, "A note on DPO with noisy preferences",
        2023. Means over tokens: huggingface/trl, trl/trainer/dpo_trainer.py, loss type sigmoid_norm. Language-model
        term: Pang et al., arXiv 2404.19733; Llama 3, arXiv 2407.21783, section on DPO.
    """

    def __init__(
        self, beta: float = 0.1, label_smoothing: float = 0.0, per_token: bool = False, nll_weight: float = 0.0
    ) -> None:
        super().__init__(beta, per_token)
        self.label_smoothing = number_option("DPOLoss", "label_smoothing", label_smoothing, below=0.5)
        self.nll_weight = number_option("DPOLoss", "nll_weight", nll_weight)

    def forward(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group, (G,); see :class:`~xrlhf.losses.policy.objective.PolicyLoss`."""
        pairs = pairwise(self.rewards(policy, reference, mask), mask, ratings)
        losses = pairs.mean(logistic(pairs.differences, self.label_smoothing))
        if self.nll_weight:
            losses = losses + self.nll_weight * chosen_nll(policy, mask, ratings).values
        return losses

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta:g}, label_smoothing={self.label_smoothing:g}, per_token={self.per_token}, "
            f"nll_weight={self.nll_weight:g}"
        )


@LOSSES.register_module()
class HingeDPOLoss(RatioLoss):
    """DPO with a hinge: a pair that is told apart by a margin of 1 counts nothing any more.

    For responses y_i, y_j of a prompt x, i preferred::

        r_i     = beta * (log p(y_i | x) - log p_ref(y_i | x))
        loss_ij = max(0, 1 - (r_i - r_j))

    Reduction: the mean over all pairs i < j of the group; pairs of equal ratings are left out; a group without a pair
    gives 0.

    Data:
        As for ``DPOLoss``.

    When:
        Pairs that are ranked right already should not be pushed further apart.

    Args:
        beta: Strength of the tie to the reference, greater than 0; the margin in log-ratios is 1 / beta.
        per_token: Compare means over tokens, not sums.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        RSO, arXiv 2309.06657, the loss hinge-norm; after SLiC-HF, arXiv 2305.10425, which has no reference.
    """

    def __init__(self, beta: float = 0.1, per_token: bool = False) -> None:
        super().__init__(beta, per_token)

    def forward(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group, (G,); see :class:`~xrlhf.losses.policy.objective.PolicyLoss`."""
        pairs = pairwise(self.rewards(policy, reference, mask), mask, ratings)
        return pairs.mean(torch.relu(1 - pairs.differences))

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, per_token={self.per_token}"


@LOSSES.register_module()
class RobustDPOLoss(RatioLoss):
    """DPO whose expectation over labels turned round at a known rate is the loss on clean labels.

    For responses y_i, y_j of a prompt x, i preferred, and e = ``label_smoothing``::

        r_i     = beta * (log p(y_i | x) - log p_ref(y_i | x))
        d_ij    = r_i - r_j
        loss_ij = (-(1 - e) * log sigmoid(d_ij) + e * log sigmoid(-d_ij)) / (1 - 2 * e)

    That is -log sigmoid(d) - e / (1 - 2 * e) * d, as it is computed here. It has no lower bound: where
    ``DPOLoss(label_smoothing=e)`` stops at a finite d, this loss goes on pushing, with a slope of -e / (1 - 2 * e) at
    least. Values below 0 are no fault.

    Reduction: the mean over all pairs i < j of the group; pairs of equal ratings are left out; a group without a pair
    gives 0.

    Data:
        As for ``DPOLoss``.

    When:
        Labels are turned round at random, at a rate that is known.

    Args:
        beta: Strength of the tie to the reference, greater than 0.
        label_smoothing: e, 0 or greater and below 0.5: the rate at which labels are turned round.
        per_token: Compare means over tokens, not sums.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Chowdhury, Kini and Natarajan, arXiv 2403.00409, the unbiased estimate of the loss (rDPO).
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.1, per_token: bool = False) -> None:
        super().__init__(beta, per_token)
        self.label_smoothing = number_option("RobustDPOLoss", "label_smoothing", label_smoothing, below=0.5)

    def forward(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group, (G,); see :class:`~xrlhf.losses.policy.objective.PolicyLoss`."""
        pairs = pairwise(self.rewards(policy, reference, mask), mask, ratings)
        slope = self.label_smoothing / (1 - 2 * self.label_smoothing)
        return pairs.mean(logistic(pairs.differences) - slope * pairs.differences)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, label_smoothing={self.label_smoothing:g}, per_token={self.per_token}"
