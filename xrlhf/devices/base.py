"""What the rest of the package may ask of a device."""

from __future__ import annotations

import random
import resource
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xrlhf.devices.agreement import tell_libraries
from xrlhf.devices.matrix_rate import measure_matrix_rate
from xrlhf.errors import DeviceError

__all__ = ["Device", "OptimizerClass"]

OptimizerClass = type[Optimizer]


class Device:
    """One kind of device, as this process uses it. Models, losses and data never ask which one it is.

    Attributes:
        name: What ``--device`` and a recipe's ``device`` call it.
        type: The name torch knows it by.
        collective_backend: The process-group backend of its tensors.
        ds_accelerator: What DeepSpeed calls it.
        found_unasked: Whether it may be taken where no device is named.
        autocast_types: What ``precision`` may ask for beside float32.
        static_shapes: Whether it compiles a program for every shape of tensor, so that there should be few.
        fused_optimizers: Whether torch's own optimizers run as one kernel on it.
        rewrites_model: Whether :meth:`optimize` changes how the weights are held, which no strategy that splits them
            can bear.
        compile_backend: The backend of ``torch.compile`` for it.
    """

    name: str = "cpu"
    type: str = "cpu"
    collective_backend: str = "gloo"
    ds_accelerator: str = "cpu"
    found_unasked: bool = True
    autocast_types: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)
    static_shapes: bool = False
    fused_optimizers: bool = True
    rewrites_model: bool = False
    compile_backend: str = "inductor"

    def __init__(self) -> None:
        self.index: int | None = None
        self._matrix_rates: dict[torch.dtype, float] = {}

    @classmethod
    def obstacle(cls) -> str | None:
        """Why this process cannot use such a device, naming what was looked for; None where it can."""
        raise NotImplementedError

    @classmethod
    def is_available(cls) -> bool:
        """Whether this build of torch can use such a device on this machine, now."""
        return cls.obstacle() is None

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.type) if self.index is None else torch.device(self.type, self.index)

    @property
    def process_group_backend(self) -> str:
        """Backends by device, so that collectives of CPU objects run on gloo whatever the device."""
        # For CPUs alone the plain name: torch 2.13 warns of a map at the end of every process.
        return "gloo" if self.type == "cpu" else f"cpu:gloo,{self.type}:{self.collective_backend}"

    def set_device(self, local_rank: int) -> None:
        """Choose the device of this process, and let the libraries choose the same; before the process group starts.

        Raises:
            DeviceError: There is none for this process, or a library has been told to use another.
        """
        tell_libraries(self.name, self.type, self.ds_accelerator)
        self._select(local_rank)

    def _select(self, local_rank: int) -> None:
        """Make the device of ``local_rank`` the one that this process uses."""

    def prepare_process_group(self, *, rank: int, world_size: int, local_rank: int, launcher: str) -> None:
        """What has to happen between choosing the device and starting the process group."""

    def ddp_kwargs(self) -> dict[str, Any]:
        """What ``DistributedDataParallel`` must be told about the device."""
        return {"device_ids": None if self.index is None else [self.index]}

    def check_precision(self, dtype: torch.dtype) -> None:
        """Refuse a ``precision`` that the device has no autocast for.

        Raises:
            DeviceError: The message names those it has.
        """
        if dtype is torch.float32 or dtype in self.autocast_types:
            return
        known = " or ".join(repr(_name_of(known)) for known in (torch.float32, *self.autocast_types))
        raise DeviceError(f"device {self.name!r} cannot compute with precision={_name_of(dtype)!r}: choose {known}")

    def grad_scaler(self) -> torch.amp.GradScaler:
        """A new loss scale, for training in float16."""
        return torch.amp.GradScaler(self.type)

    def fused_optimizer(self, kind: OptimizerClass, options: Iterable[str]) -> OptimizerClass | None:
        """The device's own version of an optimizer class that takes ``options``; None where it has none."""
        return None

    def clip_gradients(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        """Scale gradients down to a 2-norm of at most ``max_norm``; the norm before that, a scalar tensor."""
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    def optimize(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Rewrite a model and its optimizer in place for training here: after adapters are added, before DDP."""

    def mark_step(self) -> None:
        """Say that a backward pass or an update of the weights has been described in full, where work is collected."""

    def seed_all(self, seed: int) -> None:
        """Seed Python's, numpy's and torch's generators, torch's on the CPU and on this device.

        Args:
            seed: 0 to 2**63 - 1.
        """
        random.seed(seed)
        # A model's own code may draw from the global generator, so that one has to be seeded.
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)

    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""

    def total_memory(self) -> int | None:
        """Bytes of memory that the device has; None where nobody says."""
        return None

    def peak_memory_mib(self) -> float:
        """Most memory in use at once so far, MiB: of the device, or of the process where they are the same."""
        raise NotImplementedError

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Floating-point operations a second in products of matrices of ``dtype``: measured once, then remembered.

        What else the device does meanwhile lowers it. No generator of random numbers changes.
        """
        if dtype not in self._matrix_rates:
            self._matrix_rates[dtype] = measure_matrix_rate(self.torch_device, dtype, self.synchronize)
        return self._matrix_rates[dtype]

    def describe(self) -> str:
        """One line for logs and bug reports."""
        return self.name


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def process_peak_memory_mib() -> float:
    """Most memory this process has held at once, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1024 * 1024)
