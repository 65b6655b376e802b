"""What the rest of the package may ask of a device."""

from __future__ import annotations

import random
import resource
import sys
from typing import Any

import numpy as np
import torch

from xrlhf.devices.matrix_rate import measure_matrix_rate

__all__ = ["Device"]


class Device:
    """One kind of device, as this process uses it. Models, losses and data never ask which one it is.

    Attributes:
        type: The name torch knows it by.
        collective_backend: The process-group backend of its tensors.
        static_shapes: Whether it compiles a program for every shape of tensor, so that there should be few.
    """

    type: str = "cpu"
    collective_backend: str = "gloo"
    static_shapes: bool = False

    def __init__(self) -> None:
        self.index: int | None = None
        self._matrix_rates: dict[torch.dtype, float] = {}

    @classmethod
    def is_available(cls) -> bool:
        """Whether this build of torch can use such a device on this machine, now."""
        raise NotImplementedError

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.type) if self.index is None else torch.device(self.type, self.index)

    @property
    def process_group_backend(self) -> str:
        """Backends by device, so that collectives of CPU objects run on gloo whatever the device."""
        if self.type == "cpu":
            return self.collective_backend
        return f"cpu:gloo,{self.type}:{self.collective_backend}"

    def set_device(self, local_rank: int) -> None:
        """Choose the device of this process; called before the process group starts."""
        raise NotImplementedError

    def ddp_kwargs(self) -> dict[str, Any]:
        """What ``DistributedDataParallel`` must be told about the device."""
        return {"device_ids": None if self.index is None else [self.index]}

    def seed_all(self, seed: int) -> None:
        """Seed Python's, numpy's and torch's generators, torch's on the CPU and on this device.

        Args:
            seed: 0 to 2**63 - 1.
        """
        random.seed(seed)
        # A model's own code may draw from the global generator, so that one has to be seeded.
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)

    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""
        raise NotImplementedError

    def peak_memory_mib(self) -> float:
        """Most memory in use at once so far, MiB: of the device, or of the process where they are the same."""
        raise NotImplementedError

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Floating-point operations a second in products of matrices of ``dtype``: measured once, then remembered.

        What else the device does meanwhile lowers it. No generator of random numbers changes.
        """
        if dtype not in self._matrix_rates:
            self._matrix_rates[dtype] = measure_matrix_rate(self.torch_device, dtype, self.synchronize)
        return self._matrix_rates[dtype]

    def describe(self) -> str:
        """One line for logs and bug reports."""
        return self.type


def process_peak_memory_mib() -> float:
    """Most memory this process has held at once, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1024 * 1024)
