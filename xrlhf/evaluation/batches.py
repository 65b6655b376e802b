"""Metrics of a model over an evaluation set."""

from __future__ import annotations

import torch

from xrlhf.data.loader import EvalLoader
from xrlhf.devices import Device
from xrlhf.evaluation.metrics import GroupMetrics
from xrlhf.models.reward_model import RewardModel
from xrlhf.progress import track

__all__ = ["evaluate_batches"]


@torch.no_grad()
def evaluate_batches(model: RewardModel, loader: EvalLoader, device: Device) -> GroupMetrics:
    """Score every group of a loader once.

    Args:
        model: In eval mode, on ``device``.
        loader: This process's share of the set.
        device: Where to compute.
    """
    metrics = GroupMetrics()
    for item in track(loader, "evaluate", len(loader), "batch"):
        batch = item.batch.to(device.torch_device)
        metrics.add(
            model.score(batch),
            batch.response_mask,
            batch.ratings,
            torch.from_numpy(item.datasets),
            group_ids=item.batch.group_ids,
        )
    return metrics
