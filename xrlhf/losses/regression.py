"""Regression: every score is asked to equal its rating."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xrlhf.errors import ConfigError
from xrlhf.losses.objective import GroupMean, Targets, group_mean
from xrlhf.losses.options import number_option
from xrlhf.losses.targets import NEEDS_TARGET, existing_targets, has_target
from xrlhf.registry import LOSSES

__all__ = ["RegressionLoss"]


@LOSSES.register_module()
class RegressionLoss(nn.Module):
    """Squared error, or Huber's, between what the model gives for a response and what the data says of it.

    For an output s and a rating y, with the error t = s - y'::

        y'   = y                                     rating_range=None
        y'   = (y - low) / (high - low)              rating_range=(low, high)
        loss = t ** 2                                huber_delta=None, or |t| <= huber_delta
        loss = huber_delta * (2 * |t| - huber_delta) beyond it

    (Twice the usual form of Huber's loss, so that a growing delta leads to the squared error without a jump.)

    Outputs are the scores and targets the ratings; with an attribute head they are the predicted attributes and those
    of the data, one error each.

    Reduction: the loss of a group is the mean over all its responses (and attributes) that have a target; a group
    without one gives 0.

    Data:
        A rating for each response; a single response is enough. With an attribute head, attributes.

    When:
        Ratings are absolute and mean the same for every prompt (HelpSteer, annotation scales), or there is one response
        per prompt.

    Args:
        huber_delta: Error beyond which the loss grows linearly, greater than 0; None for the squared error. Set it
            (to about the usual error) where single ratings are far off.
        rating_range: The lowest and the highest rating of the data's scale, mapped to 0 and 1, so that the scores stay
            small whatever the scale; None to predict ratings as they are. With an attribute head it holds for every
            attribute.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Regression reward models: HelpSteer2, arXiv 2406.08673. Huber 1964, Robust estimation of a location parameter.
    """

    needs = NEEDS_TARGET

    def __init__(self, huber_delta: float | None = None, rating_range: Sequence[float] | None = None) -> None:
        super().__init__()
        self.huber_delta = (
            None if huber_delta is None else number_option("RegressionLoss", "huber_delta", huber_delta, exclusive=True)
        )
        self.rating_range = None if rating_range is None else _range(rating_range)

    def forward(self, outputs: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """The loss of each group.

        Args:
            outputs: (G, K) scores, or (G, K, A) predictions.
            mask: (G, K) bool, True where the response exists.
            targets: Ratings or attributes of the same shape, NaN where the data has none.

        Returns:
            (G,) float32.
        """
        predictions, goals, counted = self.compared(outputs, mask, targets)
        errors = predictions - goals
        losses = errors.square()
        if self.huber_delta is not None:
            size = errors.abs()
            losses = torch.where(size <= self.huber_delta, losses, self.huber_delta * (2 * size - self.huber_delta))
        return group_mean(losses, counted).values

    def compared(self, outputs: Tensor, mask: Tensor, targets: Tensor) -> Targets:
        """Scores and scaled ratings; see :class:`~xrlhf.losses.objective.TargetObjective`."""
        if self.rating_range is not None:
            low, high = self.rating_range
            targets = (targets - low) / (high - low)
        return existing_targets(outputs, mask, targets)

    def usable(self, mask: Tensor, targets: Tensor) -> Tensor:
        """(G,) bool, True where a group has a target; see :class:`~xrlhf.losses.objective.Objective`."""
        return has_target(mask, targets)

    def problem(self, mask: Tensor, targets: Tensor) -> str | None:
        """What is wrong with the targets of some groups, in half a sentence; None where nothing is."""
        if self.rating_range is None:
            return None
        low, high = self.rating_range
        found = targets[~targets.isnan()]
        outside = found[(found < low) | (found > high)]
        if not len(outside):
            return None
        return f"a rating is {outside[0].item():g}, outside of rating_range=({low:g}, {high:g})"

    def statistics(self, outputs: Tensor, mask: Tensor, targets: Tensor) -> dict[str, GroupMean]:
        """``mse``: the mean squared error of each group, on the scale of the loss's targets."""
        predictions, goals, counted = self.compared(outputs, mask, targets)
        return {"mse": group_mean((predictions - goals).square(), counted)}

    def extra_repr(self) -> str:
        return f"huber_delta={self.huber_delta}, rating_range={self.rating_range}"


def _range(given: Sequence[float]) -> tuple[float, float]:
    if isinstance(given, (list, tuple)) and len(given) == 2:
        low, high = (number_option("RegressionLoss", "rating_range", value, minimum=-float("inf")) for value in given)
        if low < high:
            return low, high
    raise ConfigError(
        f"RegressionLoss: rating_range is {given!r}; accepted is the lowest and the highest rating, such as (1, 5)"
    )
