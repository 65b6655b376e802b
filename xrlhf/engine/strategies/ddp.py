"""Data parallel training: every process holds the whole model and a share of each step's groups."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xrlhf.engine.strategies.single import SingleStrategy
from xrlhf.errors import CheckpointError, TrainingError, UserError
from xrlhf.registry import STRATEGIES

__all__ = ["DDPStrategy"]


@STRATEGIES.register_module()
class DDPStrategy(SingleStrategy):
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

    def backward(self, loss: Tensor) -> None:
        # DDP averages over the processes; a step's loss is a sum over them.
        (loss * self.world_size).backward()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    def gather_objects(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        dist.barrier()

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """The first process saves; the others learn whether it succeeded."""
        error: Exception | None = None
        if self.rank == 0:
            try:
                super().save_checkpoint(*args, **kwargs)
            except Exception as caught:
                error = caught
        failure = [None if error is None else (isinstance(error, UserError), str(error))]
        dist.broadcast_object_list(failure, src=0)
        if error is not None:
            raise error
        if failure[0] is not None:
            can_be_mended, message = failure[0]
            raise CheckpointError(message) if can_be_mended else TrainingError(message)
