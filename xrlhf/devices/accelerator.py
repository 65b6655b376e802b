"""What accelerators have in common that torch itself knows."""

from __future__ import annotations

from typing import Any

import torch

from xrlhf.devices.base import Device
from xrlhf.errors import DeviceError

__all__ = ["TorchAccelerator"]


class TorchAccelerator(Device):
    """A device with a module of its own in torch (``torch.cuda``, ``torch.xpu``) and CUDA-like functions in it."""

    @classmethod
    def _module(cls) -> Any:
        return torch.get_device_module(cls.type)

    def _select(self, local_rank: int) -> None:
        count = self._module().device_count()
        if local_rank >= count:
            raise DeviceError(
                f"local rank {local_rank} has no {self.type} device of its own: this machine has {count}, so start "
                f"at most {count} processes here"
            )
        self._module().set_device(local_rank)
        self.index = local_rank

    def synchronize(self) -> None:
        self._module().synchronize()

    def total_memory(self) -> int | None:
        return int(self._module().get_device_properties(self.index or 0).total_memory)

    def peak_memory_mib(self) -> float:
        return float(self._module().max_memory_allocated()) / 2**20

    def describe(self) -> str:
        return f"{self.torch_device} ({self._module().get_device_name(self.index)})"
