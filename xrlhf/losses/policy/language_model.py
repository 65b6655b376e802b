"""The loss of supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor, nn

from xrlhf.losses.objective import GroupMean
from xrlhf.losses.policy.logps import existing_logps
from xrlhf.losses.policy.objective import ResponseLogps
from xrlhf.registry import LOSSES

__all__ = ["LanguageModelLoss"]


@LOSSES.register_module()
class LanguageModelLoss(nn.Module):
    """Cross-entropy of the tokens that the policy learns to write: supervised fine-tuning.

    For the target tokens y_t of every response::

        loss = -sum_t log p(y_t | what stands before it)

    Reduction: the sum over the tokens of all responses of the group. The loss of a step is the sum over its groups
    divided by the number of target tokens in the whole step, on all processes and in all micro-batches: every token
    weighs the same, wherever it was computed.

    Data:
        Conversations, a group each; the data set's ``targets`` says which tokens count. Of groups with several
        responses all are learnt.

    When:
        Before every other stage of a policy, to teach the form of an answer.

    Reference:
        Ouyang et al. 2022, arXiv 2203.02155, section 3.5 (SFT).
    """

    needs_reference = False
    needs = "it needs conversations in which some tokens are to be learnt"
    unit = "targets"

    def forward(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group; see :class:`~xrlhf.losses.policy.objective.PolicyLoss`."""
        return -existing_logps(policy, mask).sum(dim=1)

    def usable(self, mask: Tensor, ratings: Tensor) -> Tensor:
        """(G,) bool, True where there is a response."""
        return mask.any(dim=1)

    def statistics(
        self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor
    ) -> dict[str, GroupMean]:
        """None beside the loss itself."""
        return {}
