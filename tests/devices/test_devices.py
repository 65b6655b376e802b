"""Devices: what the rest of the package may ask of them."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from xrlhf.devices import (
    DEVICES,
    CpuDevice,
    CudaDevice,
    Device,
    HpuDevice,
    IpexDevice,
    XpuDevice,
    agreement,
    find_device,
)
from xrlhf.devices import ipex as ipex_module
from xrlhf.devices.accelerator import TorchAccelerator
from xrlhf.engine.launch import Ranks, start_process_group
from xrlhf.errors import DeviceError


def test_accelerators_are_looked_for_before_the_cpu() -> None:
    assert list(DEVICES) == ["cuda", "xpu", "hpu", "ipex", "cpu"]
    assert [name for name, device in DEVICES.items() if not device.found_unasked] == ["ipex"]


def test_an_unknown_device() -> None:
    with pytest.raises(DeviceError, match=r"^unknown device 'tpu': choose one of cuda, xpu, hpu, ipex, cpu$"):
        find_device("tpu")


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Decides which devices this machine has."""

    def use(*names: str) -> None:
        for name in ("cuda", "xpu", "hpu", "ipex"):
            monkeypatch.setattr(
                DEVICES[name], "obstacle", classmethod(lambda cls: None if cls.name in names else f"no {cls.name}")
            )

    return use


def test_a_device_that_is_not_there(usable: Any) -> None:
    usable()
    with pytest.raises(DeviceError, match=r"^device 'cuda' cannot be used here: no cuda; usable on this machine: cpu$"):
        find_device("cuda")
    usable("hpu", "ipex")
    with pytest.raises(DeviceError, match=r"^device 'xpu' .*: no xpu; usable on this machine: hpu, ipex, cpu$"):
        find_device("xpu")


def test_the_first_device_that_is_there(usable: Any) -> None:
    usable()
    assert type(find_device()) is CpuDevice
    usable("xpu")
    assert type(find_device()) is XpuDevice
    usable("cuda", "xpu")
    assert type(find_device()) is CudaDevice
    usable("hpu")
    assert type(find_device()) is HpuDevice
    assert type(find_device("cpu")) is CpuDevice
    # A CPU with Intel's extension is used only where it is asked for.
    usable("ipex")
    assert type(find_device()) is CpuDevice
    assert type(find_device("ipex")) is IpexDevice


# ---------------------------------------------------------------- why a device cannot be used


def test_what_was_looked_for_on_a_cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    version = torch.__version__
    assert CudaDevice.obstacle() == (
        f"torch {version} is built without CUDA and ROCm: install a build with one of them"
    )
    monkeypatch.setattr(torch.xpu, "_is_compiled", lambda: False)
    assert XpuDevice.obstacle() == (
        f"torch {version} is built without XPU: PyTorch's own package index has builds with it"
    )
    monkeypatch.setattr("xrlhf.devices.hpu.find_spec", lambda name: None)
    assert HpuDevice.obstacle() == (
        "no package habana_frameworks is installed: it comes with Intel's PyTorch for Gaudi"
    )
    assert not HpuDevice.is_available()


def test_what_was_looked_for_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    version = torch.__version__
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert CudaDevice.obstacle() == (f"torch {version} finds no usable GPU: check the driver (nvidia-smi, or rocm-smi)")
    monkeypatch.setattr(torch.xpu, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert XpuDevice.obstacle() == (
        f"torch {version} finds no Intel GPU: check the driver (xpu-smi), and access to /dev/dri"
    )
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert XpuDevice.obstacle() is None


@pytest.mark.parametrize(
    ("version", "torch_version", "obstacle"),
    [
        (None, "2.8.0", "is not installed: the extra 'ipex' brings it, with the torch it needs"),
        ("2.8.0", "2.8.0+cpu", None),
        ("2.8.10+xpu", "2.8.1", None),
        ("2.8.0", "2.13.0", "2.8.0 works with torch 2.8 alone, and this is torch 2.13.0"),
        ("2.8.0", "2.80.0", "2.8.0 works with torch 2.8 alone, and this is torch 2.80.0"),
    ],
)
def test_the_extension_belongs_to_one_torch(
    monkeypatch: pytest.MonkeyPatch, version: str | None, torch_version: str, obstacle: str | None
) -> None:
    monkeypatch.setattr(ipex_module, "ipex_version", lambda: version)
    monkeypatch.setattr(torch, "__version__", torch_version)
    expected = None if obstacle is None else f"intel-extension-for-pytorch {obstacle}"
    assert IpexDevice.obstacle() == expected


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("device", "refused", "choose"),
    [
        (HpuDevice(), torch.float16, "'float32' or 'bfloat16'"),
        (IpexDevice(), torch.float16, "'float32' or 'bfloat16'"),
        (CpuDevice(), torch.float64, "'float32' or 'bfloat16' or 'float16'"),
    ],
)
def test_a_precision_that_the_device_lacks(device: Device, refused: torch.dtype, choose: str) -> None:
    name = str(refused).removeprefix("torch.")
    with pytest.raises(
        DeviceError, match=rf"^device '{device.name}' cannot compute with precision='{name}': choose {choose}$"
    ):
        device.check_precision(refused)
    device.check_precision(torch.float32)
    device.check_precision(torch.bfloat16)


def test_a_card_without_bfloat16(accelerator: type[Device]) -> None:
    accelerator._module().is_bf16_supported = lambda **options: False  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match=r"^xpu \(Card None\) has no instructions for precision='bfloat16': choose"):
        accelerator().check_precision(torch.bfloat16)
    accelerator().check_precision(torch.float16)


# ---------------------------------------------------------------- other libraries


@pytest.fixture
def no_accelerator_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the start of a process: nobody has told DeepSpeed a device, and nobody here has chosen one."""
    import mmengine.device.utils

    monkeypatch.setattr(agreement, "_told", None)
    monkeypatch.setattr(mmengine.device.utils, "DEVICE", mmengine.device.utils.DEVICE)
    monkeypatch.setenv("DS_ACCELERATOR", "")
    monkeypatch.delenv("DS_ACCELERATOR")


def test_libraries_are_told(no_accelerator_named: None, accelerator: type[Device]) -> None:
    """mmengine and DeepSpeed would choose for themselves; the last choice of the process counts."""
    import os

    from mmengine.device import get_device

    accelerator().set_device(0)
    assert (os.environ["DS_ACCELERATOR"], get_device()) == ("xpu", "xpu")
    CpuDevice().set_device(0)
    assert (os.environ["DS_ACCELERATOR"], get_device()) == ("cpu", "cpu")


def test_deepspeed_is_told_another_device(no_accelerator_named: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    with pytest.raises(
        DeviceError,
        match=r"^DS_ACCELERATOR=cuda tells DeepSpeed another device than 'cpu', which the run uses: unset it, or set",
    ):
        CpuDevice().set_device(0)


def test_deepspeed_that_has_chosen_already_chooses_again(
    no_accelerator_named: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It chooses while it is imported, which other packages do without being asked."""
    loaded = SimpleNamespace(ds_accelerator=SimpleNamespace(_name="hpu"))
    monkeypatch.setitem(sys.modules, "deepspeed.accelerator.real_accelerator", loaded)  # type: ignore[arg-type]
    CpuDevice().set_device(0)
    assert loaded.ds_accelerator is None


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
    monkeypatch.setattr(ipex_module, "ipex_version", lambda: None)
    return XpuDevice


def test_an_accelerator(no_accelerator_named: None, accelerator: type[TorchAccelerator]) -> None:
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
    assert HpuDevice().process_group_backend == "cpu:gloo,hpu:hccl"


def test_contract_an_intel_gpu_is_chosen_before_the_group_starts(
    no_accelerator_named: None, accelerator: type[TorchAccelerator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against functions of torch that are made up: local rank 1 of 4 processes."""
    calls = accelerator._module().calls
    monkeypatch.setattr(
        "torch.distributed.init_process_group", lambda backend, **kwargs: calls.append((backend, kwargs["rank"]))
    )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "29500" if name == "MASTER_PORT" else "0")
    start_process_group(accelerator(), Ranks(rank=3, world_size=4, local_rank=1, launcher="mpi"))
    assert calls == [("set_device", 1), ("cpu:gloo,xpu:xccl", 3)]


def test_more_processes_than_devices(no_accelerator_named: None, accelerator: type[TorchAccelerator]) -> None:
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
