"""Devices: each a small object; nothing else in the package asks for a device's name."""

from __future__ import annotations

from xrlhf.devices.accelerator import CudaDevice, XpuDevice
from xrlhf.devices.base import Device
from xrlhf.devices.cpu import CpuDevice
from xrlhf.errors import DeviceError

__all__ = ["DEVICES", "CpuDevice", "CudaDevice", "Device", "XpuDevice", "find_device"]

DEVICES: dict[str, type[Device]] = {device.type: device for device in (CudaDevice, XpuDevice, CpuDevice)}
"""Devices by name, in the order in which they are looked for."""


def find_device(name: str | None = None) -> Device:
    """The device called ``name``, or the first one this machine has.

    Raises:
        DeviceError: An unknown name, or a device that cannot be used here.
    """
    if name is None:
        return next(device() for device in DEVICES.values() if device.is_available())
    if name not in DEVICES:
        raise DeviceError(f"unknown device {name!r}: choose one of {', '.join(DEVICES)}")
    if not DEVICES[name].is_available():
        usable = ", ".join(key for key, device in DEVICES.items() if device.is_available())
        raise DeviceError(f"device {name!r} cannot be used here; usable on this machine: {usable}")
    return DEVICES[name]()
