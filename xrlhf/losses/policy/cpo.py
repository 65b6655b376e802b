"""Contrastive preference optimisation: DPO with a uniform reference, and a language-model term to hold the policy."""

from __future__ import annotations

from torch import Tensor

from xrlhf.losses.options import number_option
from xrlhf.losses.pairs import pairwise
from xrlhf.losses.policy.logistic import logistic
from xrlhf.losses.policy.logps import chosen_nll, existing_logps
from xrlhf.losses.policy.objective import ResponseLogps
from xrlhf.losses.policy.preference import PreferenceLoss
from xrlhf.registry import LOSSES

__all__ = ["CPOLoss"]


@LOSSES.register_module()
class CPOLoss(PreferenceLoss):
    """Negative log-likelihood of the preferences, the log-probability being the reward, plus that of the best response.

    For responses y_i, y_j of a prompt x, i preferred, n_1 the number of tokens of the best response y_1, and
    e = ``label_smoothing``::

        d_ij    = beta * (log p(y_i | x) - log p(y_j | x))
        loss_ij = -(1 - e) * log sigmoid(d_ij) - e * log sigmoid(-d_ij)
        loss    = mean of loss_ij + nll_weight * -log p(y_1 | x) / n_1

    The language-model term reads the answer, not the prompt. huggingface/trl takes its mean over all tokens of a batch,
    so that long answers weigh more and the value depends on how a step is cut into batches; here it is the mean over
    the tokens of each answer, then over groups. The two are equal where the chosen answers are equally long.

    Reduction: the mean over all pairs i < j of the group, and the language-model term once for each group; pairs of
    equal ratings are left out; a group without a pair gives 0.

    Data:
        As for ``DPOLoss``.

    When:
        No memory for a reference model, and answers that are worth imitating, as in translation.

    Args:
        beta: Scale of the difference, greater than 0.
        label_smoothing: e, 0 or greater and below 0.5: the share of pairs believed to be labelled the wrong way round.
        nll_weight: Weight of the language-model term, 0 or greater; 1 in the paper.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Xu et al., arXiv 2401.08417, equation 3 and the regulariser on imitation that follows it; huggingface/trl,
        trl/experimental/cpo/cpo_trainer.py.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0, nll_weight: float = 1.0) -> None:
        super().__init__()
        self.beta = number_option("CPOLoss", "beta", beta, exclusive=True)
        self.label_smoothing = number_option("CPOLoss", "label_smoothing", label_smoothing, below=0.5)
        self.nll_weight = number_option("CPOLoss", "nll_weight", nll_weight)

    def forward(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group, (G,); see :class:`~xrlhf.losses.policy.objective.PolicyLoss`."""
        pairs = pairwise(self.rewards(policy, reference, mask), mask, ratings)
        losses = pairs.mean(logistic(pairs.differences, self.label_smoothing))
        return losses + self.nll_weight * chosen_nll(policy, mask, ratings).values

    def rewards(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor) -> Tensor:
        """(G, K), beta * log p of each response; 0 where there is none."""
        return self.beta * existing_logps(policy, mask)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, label_smoothing={self.label_smoothing:g}, nll_weight={self.nll_weight:g}"
