"""The devices that a plan is for: how much they hold, how fast they multiply, how fast they talk."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xrlhf.devices import Device
from xrlhf.errors import ConfigError

__all__ = ["Hardware", "hardware_for"]

_ROOM = 0.9
"""The part of a device's memory that tensors can fill: the rest goes to its runtime, and is lost between tensors."""


@dataclass(frozen=True)
class Hardware:
    """One of several equal devices.

    Args:
        is_cpu: Whether it is a processor, which computes attention block by block and shares its memory.
        memory: Bytes it holds; None where nobody said.
        flops: Floating-point operations a second that it reaches in matrix products; None where nobody said.
        link: Bytes a second that it sends to the others; None where nobody said.
        missing: What could not be found out, and how to say it, a line each.
    """

    is_cpu: bool
    memory: float | None = None
    flops: float | None = None
    link: float | None = None
    missing: tuple[str, ...] = ()

    @property
    def room(self) -> float | None:
        """Bytes that tensors can fill."""
        return None if self.memory is None else _ROOM * self.memory


def hardware_for(
    device: Device,
    num_devices: int,
    precision: torch.dtype,
    *,
    is_named: bool,
    memory_gib: float | None = None,
    tflops: float | None = None,
    link_gbs: float | None = None,
) -> Hardware:
    """What was said of the devices, and else what the one of this machine says of itself.

    Args:
        device: The device of this machine.
        num_devices: How many the plan is for.
        precision: What the layers compute in.
        is_named: Whether somebody asked for this device. A CPU that is there only because nothing else is says
            nothing about the GPUs that a plan is for.
        memory_gib: Memory of a device, GiB.
        tflops: What it reaches in matrix products, TFLOP/s.
        link_gbs: What it sends to the others, GB/s.

    Raises:
        ConfigError: A number that is not above 0.
    """
    for name, value in (("--gpu-memory", memory_gib), ("--gpu-tflops", tflops), ("--link", link_gbs)):
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be above 0, got {value:g}")
    is_here = is_named or device.type != "cpu"
    missing = []
    memory = None if memory_gib is None else memory_gib * 2**30
    if memory is None and is_here and (total := device.total_memory()) is not None:
        # Processes on one machine share its memory.
        memory = total / num_devices if device.type == "cpu" else total
    if memory is None:
        missing.append("what fits cannot be said: there is no GPU here to ask; add --gpu-memory GIB")
    flops = None if tflops is None else tflops * 1e12
    if flops is None and is_here:
        flops = device.matrix_rate(precision)
    if flops is None:
        missing.append("time cannot be said: there is no GPU here to measure; add --gpu-tflops TFLOPS")
    elif link_gbs is None and num_devices > 1:
        missing.append("traffic is left out of the time: add --link GB/S, what a device sends to the others")
    return Hardware(
        is_cpu=is_here and device.type == "cpu",
        memory=memory,
        flops=flops,
        link=None if link_gbs is None else link_gbs * 1e9,
        missing=tuple(missing),
    )
