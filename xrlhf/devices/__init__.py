"""Devices: each a small object; nothing else in the package asks for a device's name."""

from xrlhf.devices.base import Device
from xrlhf.devices.cpu import CpuDevice
from xrlhf.devices.cuda import CudaDevice
from xrlhf.devices.find import DEVICES, find_device
from xrlhf.devices.hpu import HpuDevice
from xrlhf.devices.ipex import IpexDevice
from xrlhf.devices.xpu import XpuDevice

__all__ = ["DEVICES", "CpuDevice", "CudaDevice", "Device", "HpuDevice", "IpexDevice", "XpuDevice", "find_device"]
