"""What a loss on the responses of a policy is given, and what it says about itself."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from xrlhf.losses.objective import GroupMean

__all__ = ["NEEDS_PREFERENCE", "PolicyLoss", "ResponseLogps"]

NEEDS_PREFERENCE = (
    "it needs groups of two or more responses that are not all rated alike; for single rated responses choose KTOLoss"
)
"""What the losses on preferences say of data without any."""


class ResponseLogps(NamedTuple):
    """How likely a model finds the responses of a batch.

    Args:
        logps: (G, K) float32, sum of the log-probabilities of each response's counted tokens; 0 where masked.
        num_tokens: (G, K) int64, how many tokens were summed; 0 where masked.
    """

    logps: Tensor
    num_tokens: Tensor


@runtime_checkable
class PolicyLoss(Protocol):
    """A loss that a policy is trained with.

    A loss with ``needs_divergence = True`` is handed one number more as ``kl``, see
    :class:`~xrlhf.losses.policy.KTOLoss`. A loss may have a method ``problem(mask, ratings)`` as well,
    which gives half a sentence on ratings outside of its domain, or None.

    Attributes:
        needs_reference: Whether ``reference`` is read; for a loss that does not, no reference model has to be loaded.
        needs: What the data has to have, and what to do where it has not, for an error message.
    """

    needs_reference: bool
    needs: str

    def forward(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group.

        Args:
            policy: Of the model that is trained; the loss is differentiated with respect to its ``logps``.
            reference: Of the frozen model, a constant to the gradient; None for a loss that reads none.
            mask: (G, K) bool, True where the response exists; the responses of a group stand in order, best first.
            ratings: (G, K) float32, NaN where the data has none; equal ones are ties.

        Returns:
            (G,) float32; 0 for a group without anything to learn from.
        """
        ...

    def usable(self, mask: Tensor, ratings: Tensor) -> Tensor:
        """(G,) bool, True where the group has something to learn from."""
        ...

    def statistics(
        self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor
    ) -> dict[str, GroupMean]:
        """Metrics of each group by name, detached; none is called a loss.

        Every loss gives those of :func:`~xrlhf.losses.policy.statistics.reward_statistics` or their like.
        """
        ...
