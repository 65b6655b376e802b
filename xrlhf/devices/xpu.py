"""Intel GPUs through upstream torch."""

from __future__ import annotations

import logging

import torch

from xrlhf.devices.accelerator import TorchAccelerator
from xrlhf.devices.ipex import ipex_obstacle, ipex_version
from xrlhf.errors import DeviceError

__all__ = ["XpuDevice"]

logger = logging.getLogger("xrlhf")


class XpuDevice(TorchAccelerator):
    """Intel GPUs through upstream torch, connected by XCCL; torch's own kernels compute attention.

    Intel's extension is not needed. Where a build of it for GPUs is installed and belongs to this torch it is imported,
    since it brings kernels of its own.
    """

    name = type = ds_accelerator = "xpu"
    collective_backend = "xccl"

    @classmethod
    def obstacle(cls) -> str | None:
        module = cls._module()
        if not module._is_compiled():
            return f"torch {torch.__version__} is built without XPU: PyTorch's own package index has builds with it"
        if not module.is_available():
            return f"torch {torch.__version__} finds no Intel GPU: check the driver (xpu-smi), and access to /dev/dri"
        return None

    def _select(self, local_rank: int) -> None:
        super()._select(local_rank)
        version = ipex_version()
        if version is None or "+xpu" not in version:
            return
        obstacle = ipex_obstacle()
        if obstacle is None:
            import intel_extension_for_pytorch  # noqa: F401

            logger.info("intel-extension-for-pytorch %s is in use beside torch's own kernels", version)
        else:
            logger.info("intel-extension-for-pytorch is left aside: %s", obstacle)

    def check_precision(self, dtype: torch.dtype) -> None:
        super().check_precision(dtype)
        if dtype is torch.bfloat16 and not self._module().is_bf16_supported():
            raise DeviceError(
                f"{self.describe()} has no instructions for precision='bfloat16': choose 'float16' or 'float32'"
            )
