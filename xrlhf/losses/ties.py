"""Bradley-Terry models in which a comparison may end in a tie."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrlhf.losses.objective import GroupMean, group_mean
from xrlhf.losses.options import number_option
from xrlhf.losses.pairs import pairwise, tied_pairs
from xrlhf.registry import LOSSES

__all__ = ["DavidsonLoss", "RaoKupperLoss", "TieModel", "tie_statistics"]


class TieModel(nn.Module):
    """A model in which a comparison is won, lost or tied; its loss is -log P(what the data says of the pair).

    Args:
        tie_share: t, the share of ties among pairs of equally good responses, greater than 0 and below 1.

    Raises:
        ConfigError: ``tie_share`` is not such a number.
    """

    needs = "it needs groups of two or more responses; for single rated responses choose RegressionLoss or BinaryLoss"

    def __init__(self, tie_share: float = 1 / 3) -> None:
        super().__init__()
        self.tie_share = number_option(type(self).__name__, "tie_share", tie_share, exclusive=True, below=1.0)

    def log_probabilities(self, differences: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the probabilities that i wins and that there is a tie, for differences of any shape."""
        raise NotImplementedError

    def forward(self, scores: Tensor, mask: Tensor, ratings: Tensor) -> Tensor:
        """The loss of each group.

        Args:
            scores: (G, K) float32, best response first.
            mask: (G, K) bool, True where the response exists.
            ratings: (G, K) float32, NaN where the data has none; equal ones are ties.

        Returns:
            (G,) float32.
        """
        decided, tied = pairwise(scores, mask, ratings), tied_pairs(scores, mask, ratings)
        # No entry is in both, and each is 0 where it holds no pair.
        log_win, log_tie = self.log_probabilities(decided.differences + tied.differences)
        losses = torch.where(tied.mask, -log_tie, -log_win)
        return group_mean(losses, decided.mask | tied.mask).values

    def usable(self, mask: Tensor, ratings: Tensor) -> Tensor:
        """(G,) bool, True where there are two responses; see :class:`~xrlhf.losses.objective.Objective`."""
        return mask.sum(dim=1) > 1

    def statistics(self, scores: Tensor, mask: Tensor, ratings: Tensor) -> dict[str, GroupMean]:
        """``tie_acc`` and ``tie_prob``, see :func:`tie_statistics`."""
        return tie_statistics(self, scores, mask, ratings)

    def extra_repr(self) -> str:
        return f"tie_share={self.tie_share:g}"


@LOSSES.register_module()
class DavidsonLoss(TieModel):
    """Bradley-Terry with ties after Davidson: a tie is an outcome of its own, likeliest between equals.

    For the score difference d = s_i - s_j and v = 2 * t / (1 - t), t being ``tie_share``::

        Z          = exp(d / 2) + exp(-d / 2) + v
        P(i wins)  = exp(d / 2) / Z
        P(tie)     = v / Z
        loss       = -log P(what the data says of the pair)

    d has the meaning it has in Bradley-Terry: given that there is no tie, sigmoid(d) is the probability that i wins.

    Reduction: the mean over all pairs i < j of the group, tied or not; a pair is tied where both ratings are equal. A
    group with one response gives 0.

    Data:
        An order of two or more responses, and ratings that are equal where neither is better (``ties="keep"`` in the
        map function, where it drops rows rated all alike).

    When:
        Annotators may call a tie, and those rows say that two answers are equally good. Data without ties trains too.

    Args:
        tie_share: t, the share of ties among pairs of equally good responses, greater than 0 and below 1. Estimate it
            from repeated judgements, or start at the share of ties in the data.

    Raises:
        ConfigError: ``tie_share`` is not such a number.

    Reference:
        Davidson 1970, On extending the Bradley-Terry model to accommodate ties in paired comparison experiments, with
        pi = exp(s); on rewards of language models: Chen et al., arXiv 2409.17431.
    """

    def __init__(self, tie_share: float = 1 / 3) -> None:
        super().__init__(tie_share)
        self._log_v = math.log(2 * self.tie_share / (1 - self.tie_share))

    def log_probabilities(self, differences: Tensor) -> tuple[Tensor, Tensor]:
        half = differences / 2
        log_z = torch.logsumexp(torch.stack([half, -half, torch.full_like(half, self._log_v)]), dim=0)
        return half - log_z, self._log_v - log_z


@LOSSES.register_module()
class RaoKupperLoss(TieModel):
    """Bradley-Terry with ties after Rao and Kupper: differences below a threshold cannot be told.

    For the score difference d = s_i - s_j and h = log((1 + t) / (1 - t)), t being ``tie_share``::

        P(i wins)  = sigmoid(d - h)
        P(tie)     = (exp(2 * h) - 1) * sigmoid(d - h) * sigmoid(-d - h)
        loss       = -log P(what the data says of the pair)

    On data without ties it is Bradley-Terry with a constant margin h.

    Reduction: the mean over all pairs i < j of the group, tied or not; a pair is tied where both ratings are equal. A
    group with one response gives 0.

    Data:
        As for ``DavidsonLoss``.

    When:
        As ``DavidsonLoss``, where a tie means "too close to call"; it pushes decided pairs further apart.

    Args:
        tie_share: t, the share of ties among pairs of equally good responses, greater than 0 and below 1.

    Raises:
        ConfigError: ``tie_share`` is not such a number.

    Reference:
        Rao and Kupper 1967, Ties in paired-comparison experiments, with theta = exp(h) and pi = exp(s); on rewards of
        language models: Liu, Ge and Zhu, arXiv 2410.05328.
    """

    def __init__(self, tie_share: float = 1 / 3) -> None:
        super().__init__(tie_share)
        self._h = math.log1p(self.tie_share) - math.log1p(-self.tie_share)
        self._log_scale = math.log(math.expm1(2 * self._h))

    def log_probabilities(self, differences: Tensor) -> tuple[Tensor, Tensor]:
        wins, loses = F.logsigmoid(differences - self._h), F.logsigmoid(-differences - self._h)
        return wins, self._log_scale + wins + loses


def tie_statistics(model: TieModel, scores: Tensor, mask: Tensor, ratings: Tensor) -> dict[str, GroupMean]:
    """What a model with ties makes of the tied pairs of each group.

    Returns:
        Values for each group, by name:

        - ``tie_acc``: share of them for which a tie is the likeliest outcome (as likely as another one is enough).
          With a ``tie_share`` below 1/3 it never is.
        - ``tie_prob``: mean probability of a tie that the model gives them.
    """
    tied = tied_pairs(scores, mask, ratings)
    log_win, log_tie = model.log_probabilities(tied.differences)
    log_lose, _ = model.log_probabilities(-tied.differences)
    likeliest = log_tie >= torch.maximum(log_win, log_lose)
    return {
        "tie_acc": group_mean(likeliest.to(log_tie.dtype), tied.mask),
        "tie_prob": group_mean(log_tie.exp(), tied.mask),
    }
