"""What losses on the preferences of a group share: the data they need, and what they tell about the rewards."""

from __future__ import annotations

from torch import Tensor, nn

from xrlhf.losses.objective import GroupMean
from xrlhf.losses.options import number_option, switch_option
from xrlhf.losses.pairs import has_pair
from xrlhf.losses.policy.logps import log_ratios
from xrlhf.losses.policy.objective import NEEDS_PREFERENCE, ResponseLogps
from xrlhf.losses.policy.statistics import reward_statistics

__all__ = ["PreferenceLoss", "RatioLoss"]


class PreferenceLoss(nn.Module):
    """A loss on the pairs of a group, by a reward of each response."""

    needs_reference = False
    needs = NEEDS_PREFERENCE

    def rewards(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor) -> Tensor:
        """(G, K), what each response is worth to the policy; 0 where there is none."""
        raise NotImplementedError

    def usable(self, mask: Tensor, ratings: Tensor) -> Tensor:
        """(G,) bool, True where a group has a pair."""
        return has_pair(mask, ratings)

    def statistics(
        self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor
    ) -> dict[str, GroupMean]:
        """Those of :func:`~xrlhf.losses.policy.statistics.reward_statistics`, of the rewards."""
        return reward_statistics(self.rewards(policy, reference, mask), policy, mask, ratings)


class RatioLoss(PreferenceLoss):
    """A loss whose rewards are log-ratios to a reference: r = beta * (log p(y | x) - log p_ref(y | x)).

    Args:
        beta: Strength of the tie to the reference, greater than 0.
        per_token: Divide each r by the number of tokens of its response.

    Raises:
        ConfigError: An option has a value that is not accepted.
    """

    needs_reference = True

    def __init__(self, beta: float, per_token: bool = False) -> None:
        super().__init__()
        name = type(self).__name__
        self.beta = number_option(name, "beta", beta, exclusive=True)
        self.per_token = switch_option(name, "per_token", per_token)

    def rewards(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor) -> Tensor:
        """(G, K), r of each response; 0 where there is none."""
        return self.beta * log_ratios(policy, reference, mask, per_token=self.per_token)
