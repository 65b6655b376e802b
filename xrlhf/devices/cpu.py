"""Plain CPUs."""

from __future__ import annotations

import os
import platform

import torch

from xrlhf.devices.base import Device, process_peak_memory_mib

__all__ = ["CpuDevice"]


class CpuDevice(Device):
    """The CPU: every machine has it; gloo connects its processes."""

    @classmethod
    def obstacle(cls) -> str | None:
        return None

    def total_memory(self) -> int | None:
        known = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" not in known:
            return None
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def peak_memory_mib(self) -> float:
        return process_peak_memory_mib()

    def describe(self) -> str:
        return (
            f"{self.name} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, "
            f"{torch.get_num_threads()} threads)"
        )
