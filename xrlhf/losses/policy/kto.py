"""Kahneman-Tversky optimisation: answers that are wanted or not, without a comparison."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from xrlhf.losses.objective import GroupMean, group_mean
from xrlhf.losses.options import number_option, switch_option
from xrlhf.losses.pairs import has_pair
from xrlhf.losses.policy.logps import existing_logps, first_response, log_ratios, token_means
from xrlhf.losses.policy.objective import ResponseLogps
from xrlhf.losses.statistics import pair_statistics
from xrlhf.registry import LOSSES

__all__ = ["KTOLoss"]


@LOSSES.register_module()
class KTOLoss(nn.Module):
    """Utility of desirable and undesirable answers, each judged by itself against a reference point.

    For a response y of a prompt x::

        r    = beta * (log p(y | x) - log p_ref(y | x))
        z    = beta * max(0, kl)
        loss = desirable_weight * (1 - sigmoid(r - z))        desirable
        loss = undesirable_weight * (1 - sigmoid(z - r))      undesirable

    z is the reference point: beta times an estimate of the divergence of policy and reference, a constant to the
    gradient. It is the mean log-ratio, summed over tokens, of answers to *other* prompts: each group of a step lends
    its answers to the prompt of the group before it, and all processes and micro-batches of the step share one mean.
    That takes a forward pass of both models more in every step, and a reference that can be run (not a cached one).
    With ``estimate_kl=False``, z = 0. The loss is then not KTO of the paper but what huggingface/trl calls
    ``apo_zero_unpaired``: every answer is measured against the reference model alone, not against how far the policy
    has moved on the whole.

    A response with a rating is desirable where the rating is above ``threshold``. Of several responses without ratings
    the best is desirable and the others are not; a single one without a rating says nothing. With ``threshold=None``
    ratings are not read but for ties: the best response of several is desirable, with those that are tied with it, and
    the others are not.

    Reduction: the mean over all responses of the group that say something; a group without any gives 0. With a single
    response for each group, the mean over groups is the mean over responses of the paper and of huggingface/trl.

    Data:
        A label for each response as its rating: 1 for wanted, 0 for unwanted; a single response is enough. Or an order
        of two or more responses.

    When:
        Thumbs up and down instead of comparisons.

    Args:
        beta: Strength of the tie to the reference, greater than 0.
        desirable_weight: Factor of desirable responses, 0 or greater. The advice is to keep the ratio of
            desirable_weight * (number of desirable) to undesirable_weight * (number of undesirable) between 1 and 4/3;
            with 9 of 10 wanted that is 1/9 to 0.148.
        undesirable_weight: Factor of undesirable ones, 0 or greater.
        threshold: A rating above it is desirable. 0.5 reads 1 and 0; with 1 to 5 stars 3 makes four and five desirable.
            None goes by the order, for ratings of which only differences mean something (margins).
        estimate_kl: Whether the divergence is estimated; False for z = 0, which needs no further pass.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Ethayarajh et al., arXiv 2402.01306, equations 7 and 8; huggingface/trl, trl/trainer/kto_trainer.py. With z = 0:
        D'Oosterlinck et al., arXiv 2408.06266, equation 7, for single answers.
    """

    needs_reference = True
    needs = (
        "it needs a rating for each response (1 wanted, 0 not), or groups of two or more responses: choose a map "
        "function that reads labels, such as kto_map_fn"
    )

    def __init__(
        self,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        threshold: float | None = 0.5,
        estimate_kl: bool = True,
    ) -> None:
        super().__init__()
        self.estimate_kl = switch_option("KTOLoss", "estimate_kl", estimate_kl)
        self.beta = number_option("KTOLoss", "beta", beta, exclusive=True)
        self.desirable_weight = number_option("KTOLoss", "desirable_weight", desirable_weight)
        self.undesirable_weight = number_option("KTOLoss", "undesirable_weight", undesirable_weight)
        self.threshold = (
            None if threshold is None else number_option("KTOLoss", "threshold", threshold, minimum=-math.inf)
        )

    @property
    def needs_divergence(self) -> bool:
        """Whether training has to hand ``kl`` to ``forward``."""
        return self.estimate_kl

    def forward(
        self,
        policy: ResponseLogps,
        reference: ResponseLogps | None,
        mask: Tensor,
        ratings: Tensor,
        *,
        kl: Tensor | None = None,
    ) -> Tensor:
        """The loss of each group.

        Args:
            policy: Of the model that is trained.
            reference: Of the frozen model.
            mask: (G, K) bool, True where the response exists.
            ratings: (G, K) float32, NaN where the data has none.
            kl: One number, an estimate of the divergence, the same for the whole step; what is below 0 counts as 0, and
                no gradient reaches it. None for 0.

        Returns:
            (G,) float32.

        Raises:
            ValueError: There is no reference, or shapes or dtypes do not fit together.
        """
        desirable, counted = self.labels(mask, ratings)
        rewards = self.rewards(policy, reference, mask)
        if kl is not None:
            if kl.numel() != 1:
                raise ValueError(f"kl must be one number, but its shape is {tuple(kl.shape)}")
            rewards = rewards - self.beta * kl.detach().reshape(()).clamp(min=0)
        # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where x is large.
        losses = torch.where(
            desirable, self.desirable_weight * (-rewards).sigmoid(), self.undesirable_weight * rewards.sigmoid()
        )
        return group_mean(losses, counted).values

    def labels(self, mask: Tensor, ratings: Tensor) -> tuple[Tensor, Tensor]:
        """Which responses are desirable, and which say something at all.

        Returns:
            Two tensors (G, K) bool; what the first holds where the second is False means nothing.
        """
        if ratings.shape != mask.shape:
            raise ValueError(f"ratings and mask differ in shape: {tuple(ratings.shape)} and {tuple(mask.shape)}")
        first = first_response(mask)
        if self.threshold is None:
            best = ratings.masked_fill(~first, 0.0).sum(dim=1, keepdim=True)
            return first | (ratings == best), mask & has_pair(mask, ratings).unsqueeze(1)
        rated = mask & ~ratings.isnan()
        several = mask.sum(dim=1, keepdim=True) > 1
        return torch.where(rated, ratings > self.threshold, first), rated | (mask & several)

    def rewards(self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor) -> Tensor:
        """(G, K), r of each response; 0 where there is none."""
        return self.beta * log_ratios(policy, reference, mask)

    def usable(self, mask: Tensor, ratings: Tensor) -> Tensor:
        """(G,) bool, True where a response of the group says something."""
        return self.labels(mask, ratings)[1].any(dim=1)

    def problem(self, mask: Tensor, ratings: Tensor) -> str | None:
        """What is wrong with the ratings of some groups, in half a sentence; None where nothing is."""
        found = ratings[mask & ~ratings.isnan()]
        if self.threshold is None or not len(found):
            return None
        if 0 <= self.threshold < 1 and bool(((found == 0) | (found == 1)).all()):
            # A source of thumbs up alone is in order beside one of thumbs down.
            return None
        good = found > self.threshold
        if bool(good.any()) and not bool(good.all()):
            return None
        side = "above" if bool(good.all()) else "not above"
        return (
            f"all ratings (from {found.min().item():g} to {found.max().item():g}) are {side} "
            f"threshold={self.threshold:g}: set threshold between those of unwanted and of wanted responses, or "
            "threshold=None to go by the order of the responses"
        )

    @torch.no_grad()
    def statistics(
        self, policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, ratings: Tensor
    ) -> dict[str, GroupMean]:
        """Rewards and log-probabilities of desirable (chosen) and undesirable (rejected) responses.

        Returns:
            ``chosen_reward_mean``, ``rejected_reward_mean``, ``chosen_logp_mean``, ``rejected_logp_mean`` and
            ``chosen_nll_mean``, of the groups that have such a response, and ``reward_margin`` and ``reward_acc`` over
            the pairs of a desirable and an undesirable response of one group, where there are any.
        """
        desirable, counted = self.labels(mask, ratings)
        rewards, logps = self.rewards(policy, reference, mask), existing_logps(policy, mask)
        chosen, rejected = desirable & counted, ~desirable & counted
        of_pairs = pair_statistics(rewards, counted, desirable.to(rewards.dtype))
        has_both = of_pairs["num_pairs"] > 0
        return {
            "chosen_reward_mean": group_mean(rewards, chosen),
            "rejected_reward_mean": group_mean(rewards, rejected),
            "reward_margin": GroupMean(of_pairs["margin"], has_both),
            "reward_acc": GroupMean(of_pairs["accuracy"], has_both),
            "chosen_logp_mean": group_mean(logps, chosen),
            "rejected_logp_mean": group_mean(logps, rejected),
            "chosen_nll_mean": group_mean(-token_means(logps, policy), chosen),
        }

    def extra_repr(self) -> str:
        threshold = "None" if self.threshold is None else f"{self.threshold:g}"
        return (
            f"beta={self.beta:g}, desirable_weight={self.desirable_weight:g}, "
            f"undesirable_weight={self.undesirable_weight:g}, threshold={threshold}, "
            f"estimate_kl={self.estimate_kl}"
        )
