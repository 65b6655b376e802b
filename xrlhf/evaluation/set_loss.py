"""The loss and its metrics over an evaluation set, for models that are not judged by how they rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from xrlhf.data.loader import EvalLoader
from xrlhf.devices import Device
from xrlhf.evaluation.divergence import divergence_on_set
from xrlhf.models.policy_model import PolicyModel
from xrlhf.progress import track
from xrlhf.structures import metric_means

__all__ = ["SetLoss"]


class SetLoss:
    """Sums over the groups of a set, and what they are divided by."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    @torch.no_grad()
    def add(
        self,
        model: PolicyModel,
        loader: EvalLoader,
        device: Device,
        wrapped: nn.Module | None = None,
        sum_over_ranks: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        """Run every group of a loader once.

        Args:
            model: In eval mode, on ``device``.
            loader: This process's share of the set.
            device: Where to compute.
            wrapped: What a strategy has wrapped around the model, if it computes through that.
            sum_over_ranks: Adds a tensor up over all processes, where there are several.
        """
        divergence = divergence_on_set(loader, model, device, wrapped=wrapped, sum_over_ranks=sum_over_ranks)
        for item in track(loader, "validate", len(loader), "batch"):
            batch = replace(item.batch.to(device.torch_device), divergence=divergence)
            output = (wrapped or model)(batch)
            if not item.is_counted:
                continue
            found = {"loss": output.loss, "num_units": model.units(batch), **output.metrics}
            found["num_groups"] = batch.group_weights.sum()
            # Added up in float64: a sum over a whole set is long.
            values = torch.stack([value.float() for value in found.values()]).tolist()
            self.merge(dict(zip(found, values, strict=True)))

    def merge(self, sums: Mapping[str, float]) -> None:
        """Take in the sums of another process."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    @classmethod
    def of_all(cls, sums: Iterable[Mapping[str, float]]) -> SetLoss:
        """The sums of all processes together."""
        whole = cls()
        for of_process in sums:
            whole.merge(of_process)
        return whole

    def compute(self) -> dict[str, float]:
        """Means over the set: of the loss by its unit, of every metric by its count."""
        total = dict(self.sums)
        num_units, num_groups = total.pop("num_units"), total.pop("num_groups")
        return {"loss": total.pop("loss") / num_units, **metric_means(total, num_groups)}
