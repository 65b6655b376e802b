"""NVIDIA GPUs, and AMD ones under a ROCm build of torch."""

from __future__ import annotations

import torch

from xrlhf.devices.accelerator import TorchAccelerator
from xrlhf.errors import DeviceError

__all__ = ["CudaDevice"]


class CudaDevice(TorchAccelerator):
    """NVIDIA GPUs (and AMD ones under a ROCm build), connected by NCCL."""

    name = type = ds_accelerator = "cuda"
    collective_backend = "nccl"

    @classmethod
    def obstacle(cls) -> str | None:
        if torch.version.cuda is None and torch.version.hip is None:
            return f"torch {torch.__version__} is built without CUDA and ROCm: install a build with one of them"
        if not cls._module().is_available():
            return f"torch {torch.__version__} finds no usable GPU: check the driver (nvidia-smi, or rocm-smi)"
        return None

    def check_precision(self, dtype: torch.dtype) -> None:
        super().check_precision(dtype)
        # Older GPUs compute it in detours, many times slower.
        if dtype is torch.bfloat16 and not self._module().is_bf16_supported(including_emulation=False):
            raise DeviceError(
                f"{self.describe()} has no instructions for precision='bfloat16': choose 'float16' or 'float32'"
            )
