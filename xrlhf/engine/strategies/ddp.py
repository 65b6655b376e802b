"""Data parallel training: every process holds the whole model and a share of each step's groups."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xrlhf.engine.strategies.distributed import DistributedStrategy
from xrlhf.registry import STRATEGIES

__all__ = ["DDPStrategy"]


@STRATEGIES.register_module()
class DDPStrategy(DistributedStrategy):
    """Gradients are summed over the processes once a step, with its last micro-batch.

    Args:
        find_unused_parameters: For models some of whose trainable parameters take no part in a step.
        **kwargs: As :class:`SingleStrategy`.
    """

    def __init__(self, *, find_unused_parameters: bool = False, **kwargs: Any) -> None:
        self.find_unused_parameters = find_unused_parameters
        super().__init__(**kwargs)

    @property
    def module(self) -> nn.Module:
        return self.model.module  # type: ignore[return-value]

    def wrap(self, model: nn.Module) -> nn.Module:
        # Buffers are equal from the start and no step changes them; torch 2.13 renamed the switch.
        names = inspect.signature(DistributedDataParallel).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        options: dict[str, Any] = {switch: False, **self.device.ddp_kwargs()}
        return DistributedDataParallel(model, find_unused_parameters=self.find_unused_parameters, **options)

    def accumulate(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self.model.no_sync()  # type: ignore[operator]

    def full_weights(self, names: set[str], *, copied: bool = False) -> dict[str, Tensor]:
        return super().full_weights(names, copied=copied) if self.rank == 0 else {}

    def full_optimizer_state(self, *, copied: bool = False) -> dict[str, Any]:
        return super().full_optimizer_state(copied=copied) if self.rank == 0 else {}
