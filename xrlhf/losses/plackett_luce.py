"""The Plackett-Luce loss: the likelihood of a whole ranking."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xrlhf.losses.objective import GroupMean
from xrlhf.losses.pairs import NEEDS_PREFERENCE, has_pair
from xrlhf.losses.scores import existing_scores
from xrlhf.registry import LOSSES

__all__ = ["PlackettLuceLoss"]


@LOSSES.register_module()
class PlackettLuceLoss(nn.Module):
    """Negative log-likelihood of a ranking as a sequence of choices, the best of what is left each time.

    For the scores s_1, ..., s_K of a prompt, best first::

        loss = 1 / (K - 1) * sum over i = 1 .. K - 1 of  -log( exp(s_i) / sum over j >= i of exp(s_j) )

    Responses rated alike are one stage: no order among them is learnt. A stage D of m responses, with the set R of all
    that are rated lower, has Efron's approximation to the sum over all orders of its members::

        loss_D = -log( m! * product over D of exp(s_i) / product over l = 0 .. m - 1 of (S_R + (1 - l / m) * S_D) )

    with S_D and S_R the sums of exp(s) over D and over R; it is exact where the members of D score alike. The last
    stage has nothing left to be preferred to and counts nothing, so a group rated all alike gives 0, as everywhere
    else. Responses without a rating are stages of their own, in the order given.

    Reduction: the mean over the stages but the last, so that a long list weighs as much as a pair; with two responses
    it is the Bradley-Terry loss.

    Data:
        An order of two or more responses, best first; it differs from ``RankingLoss`` from three on.

    When:
        Whole rankings made by one judge at a time: each choice is conditioned on what was left, where pairs count the
        same judgement several times.

    Reference:
        Luce 1959; Plackett 1975, The analysis of permutations; as a loss, ListMLE (Xia et al. 2008). Ties: Efron 1977,
        The efficiency of Cox's likelihood function for censored data; Allison and Christakis 1994, Logit models for
        sets of ranked items.
    """

    needs = NEEDS_PREFERENCE

    def forward(self, scores: Tensor, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group.

        Args:
            scores: (G, K) float32, best response first.
            mask: (G, K) bool, True where the response exists.
            ratings: (G, K) float32, NaN where the data has none; only used to find ties.

        Returns:
            (G,) float32.
        """
        scores = existing_scores(scores, mask, ratings)
        stage = _stages(mask, ratings)
        both = mask.unsqueeze(2) & mask.unsqueeze(1)
        same = both & (stage.unsqueeze(2) == stage.unsqueeze(1))
        later = both & (stage.unsqueeze(2) < stage.unsqueeze(1))
        num_tied = same.sum(dim=2).clamp(min=1).to(scores.dtype)
        # How many of the stage stand before a response: l of the formula.
        place = same.tril(diagonal=-1).sum(dim=2).to(scores.dtype)
        weight = later.to(scores.dtype) + same * (1 - place / num_tied).unsqueeze(2)
        counted = later.any(dim=2)
        # Where nothing counts a weight of 1 on the response itself keeps logarithm and gradient finite.
        own = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
        weight = torch.where(counted.unsqueeze(2), weight, own.to(scores.dtype))
        left = torch.logsumexp(scores.unsqueeze(1) + weight.log(), dim=2)
        choices = (left - scores - (place + 1).log()).masked_fill(~counted, 0.0)
        num_stages = stage.masked_fill(~mask, 0).amax(dim=1) if scores.shape[1] else scores.new_zeros(len(scores))
        return choices.sum(dim=1) / num_stages.clamp(min=1)

    def usable(self, mask: Tensor, ratings: Tensor) -> Tensor:
        """(G,) bool, True where a group has a pair; see :class:`~xrlhf.losses.objective.Objective`."""
        return has_pair(mask, ratings)

    def statistics(self, scores: Tensor, mask: Tensor, ratings: Tensor) -> dict[str, GroupMean]:
        """``top_acc``: 1 where a response of the first stage has the highest score of the group."""
        present = existing_scores(scores, mask, ratings).masked_fill(~mask, -torch.inf)
        stage = _stages(mask, ratings)
        best = present.amax(dim=1, keepdim=True)
        is_right = (mask & (stage == 0) & (present == best)).any(dim=1)
        return {"top_acc": GroupMean(is_right.to(present.dtype), has_pair(mask, ratings))}


def _stages(mask: Tensor, ratings: Tensor) -> Tensor:
    """(G, K) int64, the stage of each response, counted from 0; meaningless where there is no response."""
    stage = torch.full(mask.shape[:1], -1, dtype=torch.int64, device=mask.device)
    before = torch.full(mask.shape[:1], torch.nan, dtype=ratings.dtype, device=mask.device)
    stages = []
    for exists, rating in zip(mask.unbind(dim=1), ratings.unbind(dim=1), strict=True):
        # NaN equals nothing: what has no rating begins a stage of its own.
        stage = stage + (exists & (rating != before))
        before = torch.where(exists, rating, before)
        stages.append(stage)
    return torch.stack(stages, dim=1) if stages else mask.to(torch.int64)
