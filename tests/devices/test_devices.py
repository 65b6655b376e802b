"""Devices: what the rest of the package may ask of them."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from xrlhf import devices
from xrlhf.devices import DEVICES, CpuDevice, CudaDevice, Device, XpuDevice, find_device
from xrlhf.devices.accelerator import TorchAccelerator
from xrlhf.errors import DeviceError


def test_accelerators_are_looked_for_before_the_cpu() -> None:
    assert list(DEVICES) == ["cuda", "xpu", "cpu"]


def test_an_unknown_device() -> None:
    with pytest.raises(DeviceError, match=r"^unknown device 'tpu': choose one of cuda, xpu, cpu$"):
        find_device("tpu")


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Decides which devices this machine has."""

    def use(*names: str) -> None:
        for name in ("cuda", "xpu"):
            monkeypatch.setattr(DEVICES[name], "is_available", classmethod(lambda cls: cls.type in names))

    return use


def test_a_device_that_is_not_there(usable: Any) -> None:
    usable()
    with pytest.raises(DeviceError, match=r"^device 'cuda' cannot be used here; usable on this machine: cpu$"):
        find_device("cuda")


def test_the_first_device_that_is_there(usable: Any) -> None:
    usable()
    assert type(find_device()) is CpuDevice
    usable("xpu")
    assert type(find_device()) is XpuDevice
    usable("cuda", "xpu")
    assert type(find_device()) is CudaDevice
    assert type(find_device("cpu")) is CpuDevice
    assert devices.DEVICES is DEVICES


def test_a_build_without_the_device_has_none() -> None:
    class NoSuchDevice(TorchAccelerator):
        type = "no_such_device"

    assert NoSuchDevice.is_available() is False


# ---------------------------------------------------------------- the CPU


def test_the_cpu() -> None:
    cpu = find_device("cpu")
    cpu.set_device(5)
    assert cpu.torch_device == torch.device("cpu")
    assert cpu.process_group_backend == "gloo"
    assert cpu.ddp_kwargs() == {"device_ids": None}
    cpu.synchronize()
    assert cpu.describe().startswith("cpu (")
    assert cpu.describe().endswith(f" {torch.get_num_threads()} threads)")


def test_the_memory_of_the_cpu_is_the_most_the_process_held() -> None:
    """100 MiB more, written to, must show; and stay, since it is a peak."""
    cpu = CpuDevice()
    before = cpu.peak_memory_mib()
    held = np.ones((int(before) + 100) * 2**20, dtype=np.uint8)
    grown = cpu.peak_memory_mib()
    assert grown >= before + 90
    del held
    assert cpu.peak_memory_mib() >= grown


def draws() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(()))]  # noqa: NPY002


@pytest.mark.parametrize("seed", [0, 2**32 + 5, 2**63 - 1])
def test_a_seed_decides_all_generators(seed: int) -> None:
    cpu = CpuDevice()
    cpu.seed_all(seed)
    first = draws()
    cpu.seed_all(seed)
    assert draws() == first
    cpu.seed_all(seed - 1 if seed else 1)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_the_matrix_rate_is_measured_once() -> None:
    """No generator changes, and the second answer is the first."""
    cpu = CpuDevice()
    cpu.seed_all(3)
    expected = draws()
    cpu.seed_all(3)
    rate = cpu.matrix_rate(torch.float32)
    assert draws() == expected
    assert 1e7 < rate < 1e15
    assert cpu.matrix_rate(torch.float32) == rate
    assert cpu.matrix_rate(torch.float64) != rate


# ---------------------------------------------------------------- accelerators, with a module of torch that is made up


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> type[Device]:
    calls: list[tuple[str, Any]] = []
    module = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        set_device=lambda index: calls.append(("set_device", index)),
        synchronize=lambda: calls.append(("synchronize", None)),
        max_memory_allocated=lambda: 3 * 2**20,
        get_device_name=lambda index: f"Card {index}",
        calls=calls,
    )
    monkeypatch.setattr(XpuDevice, "_module", classmethod(lambda cls: module))
    return XpuDevice


def test_an_accelerator(accelerator: type[TorchAccelerator]) -> None:
    device = accelerator()
    assert device.torch_device == torch.device("xpu")
    device.set_device(1)
    device.synchronize()
    assert accelerator._module().calls == [("set_device", 1), ("synchronize", None)]
    assert device.torch_device == torch.device("xpu", 1)
    assert device.ddp_kwargs() == {"device_ids": [1]}
    assert device.peak_memory_mib() == 3.0
    assert device.describe() == "xpu:1 (Card 1)"
    # Objects travel on gloo, whatever the device: its own backend may know tensors only.
    assert device.process_group_backend == "cpu:gloo,xpu:xccl"
    assert CudaDevice().process_group_backend == "cpu:gloo,cuda:nccl"


def test_more_processes_than_devices(accelerator: type[TorchAccelerator]) -> None:
    with pytest.raises(
        DeviceError,
        match=r"^local rank 2 has no xpu device of its own: this machine has 2, so start at most 2 processes here$",
    ):
        accelerator().set_device(2)


@pytest.mark.accelerator
@pytest.mark.skipif(not CudaDevice.is_available(), reason="needs an NVIDIA or AMD GPU")
def test_a_real_gpu() -> None:
    gpu = find_device("cuda")
    gpu.set_device(0)
    tensor = torch.ones(2**20, device=gpu.torch_device)
    gpu.synchronize()
    assert gpu.peak_memory_mib() >= tensor.numel() * 4 / 2**20
    assert "cuda:0" in gpu.describe()
    generator = torch.cuda.get_rng_state()
    assert 1e11 < gpu.matrix_rate(torch.float32) < gpu.matrix_rate(torch.bfloat16) < 1e16
    assert torch.equal(torch.cuda.get_rng_state(), generator)
