"""Binary labels: every response is good or bad by itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrlhf.losses.objective import GroupMean, Targets, group_mean
from xrlhf.losses.options import number_option
from xrlhf.losses.targets import NEEDS_TARGET, existing_targets, has_target
from xrlhf.registry import LOSSES

__all__ = ["BinaryLoss"]


@LOSSES.register_module()
class BinaryLoss(nn.Module):
    """Logistic loss of "this response is good", for responses that were judged one by one.

    For a score s and a rating r::

        loss = -positive_weight * log sigmoid(s)       r >  threshold (good)
        loss = -negative_weight * log sigmoid(-s)      r <= threshold (bad)

    sigmoid(s) is the probability that the response is good; with weights of 1 it is calibrated as such.

    Reduction: the loss of a group is the mean over all its responses (with an attribute head, and attributes) that are
    rated; a group without a rating gives 0.

    Data:
        A label for each response as its rating: 1 for good, 0 for bad; a single response is enough.

    When:
        Thumbs up and down, pass and fail, KTO's rows; graded ratings with a threshold.

    Args:
        threshold: A rating above it is good. 0.5 reads 1 and 0; with 1 to 5 stars 3 makes four and five good.
        positive_weight: Factor of good responses, 0 or greater. Where 9 of 10 labels are good, 1/9 balances them; the
            scores are then no longer calibrated.
        negative_weight: Factor of bad ones, 0 or greater.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Logistic regression: Cox 1958. Binary desirable/undesirable feedback and its two weights: KTO,
        arXiv 2402.01306; outcome reward models trained on it: Cobbe et al., arXiv 2110.14168, section 4.2.
    """

    needs = NEEDS_TARGET

    def __init__(self, threshold: float = 0.5, positive_weight: float = 1.0, negative_weight: float = 1.0) -> None:
        super().__init__()
        self.threshold = number_option("BinaryLoss", "threshold", threshold, minimum=-math.inf)
        self.positive_weight = number_option("BinaryLoss", "positive_weight", positive_weight)
        self.negative_weight = number_option("BinaryLoss", "negative_weight", negative_weight)

    def forward(self, outputs: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """The loss of each group.

        Args:
            outputs: (G, K) scores, or (G, K, A) predictions.
            mask: (G, K) bool, True where the response exists.
            targets: Ratings or attributes of the same shape, NaN where the data has none.

        Returns:
            (G,) float32.
        """
        predictions, labels, counted = self.compared(outputs, mask, targets)
        good = labels > 0.5
        losses = torch.where(
            good, -self.positive_weight * F.logsigmoid(predictions), -self.negative_weight * F.logsigmoid(-predictions)
        )
        return group_mean(losses, counted).values

    def compared(self, outputs: Tensor, mask: Tensor, targets: Tensor) -> Targets:
        """Scores and labels 1 or 0; see :class:`~xrlhf.losses.objective.TargetObjective`."""
        labels = (targets > self.threshold).to(targets.dtype).masked_fill(targets.isnan(), math.nan)
        return existing_targets(outputs, mask, labels)

    def usable(self, mask: Tensor, targets: Tensor) -> Tensor:
        """(G,) bool, True where a group has a label; see :class:`~xrlhf.losses.objective.Objective`."""
        return has_target(mask, targets)

    def problem(self, mask: Tensor, targets: Tensor) -> str | None:
        """What is wrong with the targets of some groups, in half a sentence; None where nothing is."""
        found = targets[~targets.isnan()]
        good = found > self.threshold
        if not len(found) or (bool(good.any()) and not bool(good.all())):
            return None
        side = "above" if bool(good.all()) else "not above"
        return (
            f"all ratings (from {found.min().item():g} to {found.max().item():g}) are {side} "
            f"threshold={self.threshold:g}: set threshold between those of bad and of good responses"
        )

    def statistics(self, outputs: Tensor, mask: Tensor, targets: Tensor) -> dict[str, GroupMean]:
        """``label_acc``: share of each group's labels that the sign of the score tells; a score of 0 counts half."""
        predictions, labels, counted = self.compared(outputs, mask, targets)
        right = torch.where(labels > 0.5, predictions > 0, predictions < 0).to(predictions.dtype)
        return {"label_acc": group_mean(right + 0.5 * (predictions == 0), counted)}

    def extra_repr(self) -> str:
        return (
            f"threshold={self.threshold:g}, positive_weight={self.positive_weight:g}, "
            f"negative_weight={self.negative_weight:g}"
        )
