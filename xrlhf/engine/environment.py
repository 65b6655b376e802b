"""What a bug report needs to know about this machine, and nothing that would identify its user."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata

import torch

from xrlhf.devices import DEVICES, find_device
from xrlhf.version import __version__

__all__ = ["ENVIRONMENT", "environment_report"]

ENVIRONMENT = "environment.txt"
"""What the file with this report is called in the folder of a run's start."""

_PACKAGES = (
    "torch", "transformers", "tokenizers", "mmengine", "datasets", "peft", "safetensors", "numpy", "pyarrow",
    "deepspeed", "flash-attn", "bitsandbytes", "intel-extension-for-pytorch", "habana-torch-plugin", "vllm",
)  # fmt: skip
_VARIABLES = (
    "DS_ACCELERATOR",
    "PT_HPU_LAZY_MODE",
    "CUDA_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "HABANA_VISIBLE_MODULES",
)
_LEAST_SHARED_MEMORY_MIB = 64


def environment_report() -> list[str]:
    """Versions, devices, limits, and problems found, as plain lines."""
    lines = [
        f"xrlhf: {__version__}",
        f"python: {platform.python_version()} ({platform.python_implementation()})",
        f"platform: {platform.system()} {platform.release()} {platform.machine()}",
    ]
    lines += [f"{name}: {_version(name)}" for name in _PACKAGES]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines.append(f"cpu: {cpus} usable, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for name, device in DEVICES.items():
        obstacle = device.obstacle()
        lines.append(f"device {name}: " + (device().describe() if obstacle is None else f"not usable: {obstacle}"))
    lines.append(f"device of a run that names none: {find_device().name}")
    lines += [f"{name}: {os.environ[name]}" for name in _VARIABLES if name in os.environ]
    if torch.version.cuda:
        lines.append(f"cuda build: {torch.version.cuda}")
    free = shutil.disk_usage(".").free / 2**30
    lines.append(f"free disk here: {free:.1f} GiB")
    problems = _problems(free)
    lines.append("problems found: " + ("none" if not problems else ""))
    lines += [f"  - {problem}" for problem in problems]
    return lines


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _problems(free_gib: float) -> list[str]:
    problems = []
    if free_gib < 5:
        problems.append("less than 5 GiB of disk are free here: checkpoints may not fit")
    if torch.version.cuda and not DEVICES["cuda"].is_available():
        problems.append("this torch is built for CUDA but finds no usable GPU: check the driver (nvidia-smi)")
    if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").total < _LEAST_SHARED_MEMORY_MIB * 2**20:
        problems.append("/dev/shm is smaller than 64 MiB: give the container --shm-size=1g for several processes")
    if "OMP_NUM_THREADS" in os.environ:
        problems.append(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} limits the CPU threads of every process")
    return problems
