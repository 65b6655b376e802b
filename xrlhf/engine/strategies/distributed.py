"""What the strategies of several processes have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from xrlhf.engine.strategies.single import SingleStrategy
from xrlhf.errors import CheckpointError, TrainingError, UserError

__all__ = ["DistributedStrategy"]


class DistributedStrategy(SingleStrategy):
    """Every process computes a share of each step's groups."""

    def backward(self, loss: Tensor) -> None:
        # Gradients are averaged over the processes; a step's loss is a sum over them.
        super().backward(loss * self.world_size)

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

    def on_first_rank(self, action: Callable[[], None]) -> None:
        error: Exception | None = None
        if self.rank == 0:
            try:
                action()
            except Exception as caught:
                error = caught
        self.raise_together(error)

    def raise_together(self, error: BaseException | None) -> None:
        failures = self.gather_objects(None if error is None else (isinstance(error, UserError), str(error)))
        if error is not None:
            raise error
        for failure in failures:
            if failure is not None:
                can_be_mended, message = failure
                raise CheckpointError(message) if can_be_mended else TrainingError(message)
