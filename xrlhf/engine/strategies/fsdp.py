"""Fully sharded data parallel training (FSDP2): every process holds a share of each weight.

Zhao et al., PyTorch FSDP, arXiv 2304.11277; the per-parameter form is ``torch.distributed.fsdp.fully_shard``.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from xrlhf.engine.checkpoint import check_tensors
from xrlhf.engine.strategies.distributed import DistributedStrategy
from xrlhf.models.group_model import GroupModel
from xrlhf.models.loading import decoder_layers
from xrlhf.registry import STRATEGIES

__all__ = ["FSDPStrategy"]


@STRATEGIES.register_module()
class FSDPStrategy(DistributedStrategy):
    """Weights, gradients and optimizer state are split over the processes; a layer is whole only while it computes.

    Args:
        half_precision: Send and compute the layers in the model's ``precision`` rather than in float32: half the
            traffic, and gradients that are rounded before they are summed in float32. Weights stay float32.
        reshard_after_forward: Give a layer's weights back after its forward pass and fetch them again for the
            backward pass (ZeRO-3); False keeps them (ZeRO-2): less traffic, more memory.
        cpu_offload: Keep weights, gradients and optimizer state in the memory of the host.
        **kwargs: As :class:`SingleStrategy`.
    """

    keeps_model_whole = False

    def __init__(
        self,
        *,
        half_precision: bool = False,
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
        **kwargs: Any,
    ) -> None:
        self.half_precision = half_precision
        self.reshard_after_forward = reshard_after_forward
        self.cpu_offload = cpu_offload
        super().__init__(**kwargs)

    def place(self, model: nn.Module) -> nn.Module:
        # torch 2.13 warns of calls of its own, every step.
        warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        offload = CPUOffloadPolicy() if self.cpu_offload and self.device.type != "cpu" else OffloadPolicy()
        options: dict[str, Any] = {
            "mesh": mesh,
            "reshard_after_forward": self.reshard_after_forward,
            "offload_policy": offload,
        }
        precision = getattr(model, "precision", torch.float32)
        policy = MixedPrecisionPolicy()
        if self.half_precision and precision is not torch.float32:
            policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
        for part in model.transformers_models() if isinstance(model, GroupModel) else ():
            for layer in decoder_layers(part):
                fully_shard(layer, mp_policy=policy, **options)
        # What is left, embeddings and head, computes in its own type.
        fully_shard(model, **options)
        return model

    def accumulate(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()

    def clip_gradients(self) -> Tensor:
        norm = super().clip_gradients()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def full_weights(self, names: set[str]) -> dict[str, Tensor]:
        whole = {name: _whole(value) for name, value in self.module.state_dict().items() if name in names}
        return whole if self.rank == 0 else {}

    def full_optimizer_state(self) -> dict[str, Any]:
        state = self.optim_wrapper.state_dict()
        # One after the other, so that the device never holds more than one whole tensor.
        whole = {
            index: {name: _whole(value) if isinstance(value, Tensor) else value for name, value in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": whole if self.rank == 0 else {}}

    def load_full_weights(self, weights: Mapping[str, Tensor], filename: str) -> None:
        own = self.module.state_dict()
        check_tensors(own, weights, self.module.checkpoint_names(), filename)  # type: ignore[operator]
        self.module.load_state_dict({name: _like(own[name], value) for name, value in weights.items()}, strict=False)

    def load_full_optimizer_state(self, state: dict[str, Any]) -> None:
        parameters = [p for group in self.optim_wrapper.param_groups for p in group["params"]]
        shared = {
            index: {
                name: _like(parameters[index], value)
                if isinstance(value, Tensor) and value.shape == parameters[index].shape
                else value
                for name, value in values.items()
            }
            for index, values in state["state"].items()
        }
        super().load_full_optimizer_state({**state, "state": shared})


def _whole(value: Tensor) -> Tensor:
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def _like(pattern: Tensor, value: Tensor) -> Tensor:
    """This process's share of ``value``, which every process holds, where ``pattern`` is shared."""
    if not isinstance(pattern, DTensor):
        return value
    # No process needs another's copy: each has read the same file.
    return distribute_tensor(
        value.to(pattern.device_mesh.device_type), pattern.device_mesh, pattern.placements, src_data_rank=None
    )
