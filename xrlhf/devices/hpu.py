"""Intel Gaudi, through Intel's own PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from xrlhf.devices.base import Device, OptimizerClass
from xrlhf.errors import DeviceError, error_line
from xrlhf.preload import GAUDI_MODE, set_library_environment

__all__ = ["HpuDevice"]

_FUSED_ADAMW_TAKES = {"params", "lr", "betas", "eps", "weight_decay"}


class HpuDevice(Device):
    """Gaudi cards, connected by HCCL; in eager mode, or in lazy mode where the environment says so.

    Lazy mode collects work and runs it where :meth:`mark_step` stands. Every process has a card of its own, which its
    launcher or :meth:`prepare_process_group` assigns; it is not touched before.
    """

    name = type = ds_accelerator = "hpu"
    collective_backend = "hccl"
    autocast_types = (torch.bfloat16,)
    static_shapes = True
    fused_optimizers = False

    def __init__(self) -> None:
        super().__init__()
        self._clippers: dict[float, Any] = {}

    @classmethod
    def obstacle(cls) -> str | None:
        if find_spec("habana_frameworks") is None:
            return "no package habana_frameworks is installed: it comes with Intel's PyTorch for Gaudi"
        if os.environ.get(GAUDI_MODE, "0") not in ("0", "1"):
            return f"{GAUDI_MODE} must be 0 (eager) or 1 (lazy), got {os.environ[GAUDI_MODE]!r}"
        if "habana_frameworks.torch" not in sys.modules:
            set_library_environment()
        try:
            import_module("habana_frameworks.torch")
            # Where torch has imported it before we could, it has chosen a mode, which the others have to be told.
            is_lazy = import_module("habana_frameworks.torch.utils.internal").is_lazy()
        except (ImportError, RuntimeError, OSError) as error:
            return f"habana_frameworks.torch cannot be imported: {error_line(error)}"
        os.environ.setdefault(GAUDI_MODE, str(int(is_lazy)))
        if not cls._module().is_available():
            return "habana_frameworks finds no Gaudi card: check the driver (hl-smi)"
        return None

    @classmethod
    def _module(cls) -> Any:
        return torch.get_device_module("hpu")

    @property
    def is_lazy(self) -> bool:
        return os.environ.get(GAUDI_MODE) == "1"

    @property
    def compile_backend(self) -> str:  # type: ignore[override]
        """The backend of ``torch.compile``.

        Raises:
            DeviceError: Lazy mode has none.
        """
        if self.is_lazy:
            raise DeviceError(f"compile=True needs eager mode: set {GAUDI_MODE}=0, or leave compile out")
        return "hpu_backend"

    def prepare_process_group(self, *, rank: int, world_size: int, local_rank: int, launcher: str) -> None:
        hccl = import_module("habana_frameworks.torch.distributed.hccl")
        # Under torchrun the environment says all of it.
        if launcher != "pytorch":
            hccl.initialize_distributed_hpu(world_size=world_size, rank=rank, local_rank=local_rank)

    def ddp_kwargs(self) -> dict[str, Any]:
        return {"device_ids": [self._module().current_device()]}

    def fused_optimizer(self, kind: OptimizerClass, options: Iterable[str]) -> OptimizerClass | None:
        if kind is not AdamW or not set(options) <= _FUSED_ADAMW_TAKES:
            return None
        try:
            return import_module("habana_frameworks.torch.hpex.optimizers").FusedAdamW
        except (ImportError, AttributeError):
            return None

    def clip_gradients(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        if max_norm == float("inf"):
            return super().clip_gradients(parameters, max_norm)
        if max_norm not in self._clippers:
            try:
                fused = import_module("habana_frameworks.torch.hpex.normalization").FusedClipNorm
            except (ImportError, AttributeError):
                return super().clip_gradients(parameters, max_norm)
            self._clippers[max_norm] = fused(parameters, max_norm)
        return self._clippers[max_norm].clip_norm(parameters)

    def mark_step(self) -> None:
        if self.is_lazy:
            import_module("habana_frameworks.torch.core").mark_step()

    def seed_all(self, seed: int) -> None:
        super().seed_all(seed)
        # torch itself seeds the devices that are built into it.
        self._module().manual_seed_all(seed)

    def synchronize(self) -> None:
        self.mark_step()
        self._module().synchronize()

    def peak_memory_mib(self) -> float:
        return float(self._module().max_memory_allocated()) / 2**20

    def describe(self) -> str:
        return f"hpu ({self._module().get_device_name()}, {'lazy' if self.is_lazy else 'eager'} mode)"
