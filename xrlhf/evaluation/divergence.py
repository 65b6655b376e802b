"""How far a policy is from its reference, estimated on answers to the wrong prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from xrlhf.data.loader import EvalLoader
from xrlhf.devices import Device
from xrlhf.models.policy_model import PolicyModel
from xrlhf.structures import PackedBatch

__all__ = ["divergence_on", "divergence_on_set"]


@torch.no_grad()
def divergence_on(
    batches: Iterable[PackedBatch],
    model: PolicyModel,
    device: Device,
    *,
    wrapped: nn.Module | None = None,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda values: values,
) -> Tensor:
    """(), float32, at least 0: the mean of log p(y | x) - log p_ref(y | x) over mismatched answers of all processes.

    Ethayarajh et al., arXiv 2402.01306, equations 7 and 8. Adapters' dropout is off, so that it depends
    on the answers and the weights alone.

    Args:
        batches: This process's share, as :mod:`xrlhf.data.mismatch` makes them; filler has weight 0.
        model: With a reference that it can run.
        device: Where to compute.
        wrapped: What a strategy has wrapped around the model, if it computes through that.
        sum_over_ranks: Adds a tensor up over all processes.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, device=device.torch_device)
    try:
        for batch in batches:
            batch = batch.to(device.torch_device)
            policy, reference = (wrapped or model)(batch, mode="outputs")
            ratios = model.logps(batch, policy).logps - model.logps(batch, reference).logps
            counts = batch.response_mask * batch.group_weights.unsqueeze(1)
            sums += torch.stack([torch.where(counts > 0, ratios, 0.0).sum(), counts.sum()])
            device.mark_step()
    finally:
        model.train(was_training)
    total, number = sum_over_ranks(sums).unbind()
    return (total / number.clamp(min=1)).clamp(min=0)


def divergence_on_set(
    loader: EvalLoader,
    model: PolicyModel,
    device: Device,
    *,
    wrapped: nn.Module | None = None,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda values: values,
) -> Tensor | None:
    """The same for a whole evaluation set, as if it were one step; None where the model's loss asks for none."""
    if not model.needs_divergence:
        return None
    return divergence_on(loader.mismatched(), model, device, wrapped=wrapped, sum_over_ranks=sum_over_ranks)
