"""Plain CPUs."""

from __future__ import annotations

import platform

import torch

from xrlhf.devices.base import Device, process_peak_memory_mib

__all__ = ["CpuDevice"]


class CpuDevice(Device):
    """The CPU: every machine has it; gloo connects its processes."""

    type = "cpu"
    collective_backend = "gloo"

    @classmethod
    def is_available(cls) -> bool:
        return True

    def set_device(self, local_rank: int) -> None:
        self.index = None

    def synchronize(self) -> None:
        return None

    def peak_memory_mib(self) -> float:
        return process_peak_memory_mib()

    def describe(self) -> str:
        return (
            f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"
        )
