"""Activations that wait in the memory of the host for the backward pass.

Of a model under gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) the input of every layer remains on the
device, a vector a token and layer. This moves those out, so that what a long row needs there no longer grows with the
layers. ``torch.autograd.graph.save_on_cpu`` is torch's own form of it; it would take weights and small tensors along.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["HostActivations"]

_LEAST_BYTES = 1 << 16
"""Smaller tensors stay: moving them takes longer than the room is worth."""


@dataclass(frozen=True)
class _Moved:
    host: Tensor
    device: torch.device


class HostActivations:
    """Moves what a forward pass saves for the backward pass to the host, and back when it is asked for.

    Weights stay where they are, and so does everything on a CPU, whose memory is the host's. Copies are ordered by the
    device's own stream: the program does not wait for them, the device's next work does.

    Args:
        weights: The weights of the model as they are now; a strategy may put others in their place between passes.
        least_bytes: Tensors below this size stay on the device.
    """

    def __init__(self, weights: Iterable[Tensor], least_bytes: int = _LEAST_BYTES) -> None:
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        self._least_bytes = least_bytes

    def hooks(self) -> saved_tensors_hooks:
        """A context to run the forward pass in."""
        return saved_tensors_hooks(self._pack, self._unpack)

    def leaves_device(self, tensor: Tensor) -> bool:
        """Whether a tensor that is saved is kept by the host."""
        return tensor.device.type != "cpu"

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy in the memory of the host, page-locked where the device can then copy by itself."""
        host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type in ("cuda", "xpu"))
        return host.copy_(tensor, non_blocking=True)

    def to_device(self, host: Tensor, device: torch.device) -> Tensor:
        """The tensor on its device again."""
        return host.to(device, non_blocking=True)

    def _pack(self, tensor: Tensor) -> Tensor | _Moved:
        is_small = tensor.numel() * tensor.element_size() < self._least_bytes
        if is_small or tensor.untyped_storage()._cdata in self._weights or not self.leaves_device(tensor):
            return tensor
        return _Moved(self.to_host(tensor.detach()), tensor.device)

    def _unpack(self, packed: Tensor | _Moved) -> Tensor:
        return self.to_device(packed.host, packed.device) if isinstance(packed, _Moved) else packed
