"""Metrics of a model over an evaluation set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from xrlhf.data.loader import EvalLoader
from xrlhf.devices import Device
from xrlhf.evaluation.metrics import GroupMetrics
from xrlhf.evaluation.target_metrics import TargetMetrics
from xrlhf.losses.objective import TargetObjective
from xrlhf.models.reward_model import RewardModel
from xrlhf.progress import track

__all__ = ["SetMetrics", "evaluate_batches"]


class SetMetrics:
    """Metrics of an evaluation set: how its groups are ranked, and how scores meet their targets.

    Attributes:
        ranking: Of groups with a preference.
        targets: Of the model's loss, where it has metrics of its own.
    """

    def __init__(self) -> None:
        self.ranking = GroupMetrics()
        self.targets = TargetMetrics()

    def state(self) -> tuple[Any, Any]:
        """All that was collected, to be handed to another process."""
        return self.ranking.state(), self.targets.state()

    def merge(self, state: tuple[Any, Any]) -> None:
        """Take in another object's :meth:`state`."""
        self.ranking.merge(state[0])
        self.targets.merge(state[1])

    def compute(self, names: Sequence[str]) -> dict[str, float]:
        """Both kinds of metrics; those of rankings are left out where the set has targets but no preference.

        Args:
            names: Name of each data set, by index.

        Raises:
            DataError: The set has neither.
        """
        on_targets = self.targets.compute(names)
        num_pairs = self.ranking.state()[:, GroupMetrics.COLUMNS.index("num_pairs")]
        if on_targets and not bool((num_pairs > 0).any()):
            return on_targets
        return {**self.ranking.compute(names), **on_targets}


@torch.no_grad()
def evaluate_batches(
    model: RewardModel, loader: EvalLoader, device: Device, *, wrapped: nn.Module | None = None
) -> SetMetrics:
    """Score every group of a loader once.

    Args:
        model: In eval mode, on ``device``.
        loader: This process's share of the set.
        device: Where to compute.
        wrapped: What a strategy has wrapped around the model, if it computes through that.
    """
    metrics = SetMetrics()
    for item in track(loader, "evaluate", len(loader), "batch"):
        batch = item.batch.to(device.torch_device)
        datasets = torch.from_numpy(item.datasets)
        outputs = (wrapped or model)(batch, mode="outputs")
        if not item.is_counted:
            continue
        metrics.ranking.add(
            model.head.scalar(outputs), batch.response_mask, batch.ratings, datasets, group_ids=item.batch.group_ids
        )
        metrics.targets.add_means(model.statistics(outputs, batch), datasets)
        if isinstance(model.loss, TargetObjective):
            compared = model.loss.compared(outputs, batch.response_mask, model.head.targets(batch))
            metrics.targets.add_points(compared, datasets, model.head.names)
    return metrics
