"""Which device a run uses: the one that is named, or the first that is there."""

from __future__ import annotations

from xrlhf.devices.base import Device
from xrlhf.devices.cpu import CpuDevice
from xrlhf.devices.cuda import CudaDevice
from xrlhf.devices.hpu import HpuDevice
from xrlhf.devices.ipex import IpexDevice
from xrlhf.devices.xpu import XpuDevice
from xrlhf.errors import DeviceError

__all__ = ["DEVICES", "find_device"]

DEVICES: dict[str, type[Device]] = {
    device.name: device for device in (CudaDevice, XpuDevice, HpuDevice, IpexDevice, CpuDevice)
}
"""Devices by name, in the order in which they are looked for."""


def find_device(name: str | None = None) -> Device:
    """The device called ``name``, or the first one this machine has.

    Raises:
        DeviceError: An unknown name, or a device that cannot be used here.
    """
    if name is None:
        return next(device() for device in DEVICES.values() if device.found_unasked and device.is_available())
    if name not in DEVICES:
        raise DeviceError(f"unknown device {name!r}: choose one of {', '.join(DEVICES)}")
    obstacle = DEVICES[name].obstacle()
    if obstacle is not None:
        usable = ", ".join(key for key, device in DEVICES.items() if device.is_available())
        raise DeviceError(f"device {name!r} cannot be used here: {obstacle}; usable on this machine: {usable}")
    return DEVICES[name]()
