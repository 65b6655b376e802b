"""Fully sharded data parallel training (FSDP2): every process holds a share of each weight.

Zhao et al., PyTorch FSDP, arXiv 2304.11277; the per-parameter form is ``torch.distributed.fsdp.fully_shard``.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from xrlhf.engine.checkpoint import check_tensors
from xrlhf.engine.shares import Share, part_of, shape_of
from xrlhf.engine.strategies.distributed import DistributedStrategy
from xrlhf.engine.strategies.whole import with_whole_weights
from xrlhf.errors import TrainingError
from xrlhf.models.group_model import GroupModel
from xrlhf.models.loading import decoder_layers
from xrlhf.models.quantised import quantised_modules
from xrlhf.registry import STRATEGIES

__all__ = ["FSDPStrategy"]


@STRATEGIES.register_module()
class FSDPStrategy(DistributedStrategy):
    """Weights, gradients and optimizer state are split over the processes; a layer is whole only while it computes.

    Weights held in 4 or 8 bits stay whole on every process: what belongs to them cannot be cut where they would be.

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
        quantised = quantised_modules(model)
        for module in quantised:
            module.to(self.device.torch_device)
        weights = (weight for module in quantised for weight in module.parameters(recurse=False))
        options: dict[str, Any] = {
            "mesh": mesh,
            "ignored_params": {weight for weight in weights if not weight.requires_grad},
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

    def full_weights(self, names: set[str], *, copied: bool = False) -> dict[str, Tensor]:
        whole = {name: _whole(value) for name, value in self.module.state_dict().items() if name in names}
        return whole if self.rank == 0 else {}

    def whole_weights(self, part: nn.Module) -> contextlib.AbstractContextManager[None]:
        return with_whole_weights(part, self._whole_on_device)

    def _whole_on_device(self, weight: nn.Parameter) -> Tensor:
        if not isinstance(weight, DTensor):
            return weight
        placed: Any = weight.detach().to(self.device.torch_device)
        return placed.full_tensor()

    def full_optimizer_state(self, *, copied: bool = False) -> dict[str, Any]:
        state = self.optim_wrapper.state_dict()
        # One after the other, so that the device never holds more than one whole tensor.
        whole = {
            index: {name: _whole(value) if isinstance(value, Tensor) else value for name, value in values.items()}
            for index, values in state["state"].items()
        }
        rest = {name: part for name, part in state.items() if name != "state"}
        return {**copy.deepcopy(rest), "state": whole if self.rank == 0 else {}}

    def _share(self, value: Tensor) -> Share:
        if not isinstance(value, DTensor):
            return super()._share(value)
        start, local = _local(value)
        return Share(tuple(value.shape), ((start, local.reshape(-1)),))

    def load_full_weights(self, weights: Mapping[str, Tensor], filename: str) -> None:
        own = self.module.state_dict()
        check_tensors(own, weights, self.module.checkpoint_names(), filename)  # type: ignore[operator]
        with torch.no_grad():
            for name in weights:
                if isinstance(own[name], DTensor):
                    _, local = _local(own[name])
                    local.copy_(_local_of(own[name], weights, name))
                else:
                    own[name].copy_(weights[name])

    def _own_state(self, parameter: nn.Parameter, values: Mapping[str, Any], name: str) -> Any:
        if not isinstance(parameter, DTensor) or shape_of(values, name) != parameter.shape:
            return super()._own_state(parameter, values, name)
        found = _local_of(parameter, values, name)
        own = torch.empty_like(parameter.detach(), dtype=found.dtype)
        _local(own)[1].copy_(found)
        return own


def _whole(value: Tensor) -> Tensor:
    """A tensor in memory of its own on the CPU, put together from what the processes hold of it."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).to("cpu", copy=True)


def _local(value: Any) -> tuple[int, Tensor]:
    """Where this process's rows begin among the elements of the whole, and these rows, in place."""
    if value.placements != (Shard(0),):
        raise TrainingError(f"a tensor is split by {value.placements}, and only rows of it can be saved and loaded")
    rows, mesh = value.shape[0], value.device_mesh
    first = min(rows, mesh.get_local_rank() * -(-rows // mesh.size()))
    return first * (value.numel() // max(1, rows)), value.detach().to_local()


def _local_of(pattern: DTensor, values: Mapping[str, Any], name: str) -> Tensor:
    """This process's rows of a saved tensor, which is split as ``pattern`` is."""
    start, local = _local(pattern)
    return part_of(values, name, start, local.numel()).view(local.shape)
