"""A model outside of training, with as much of a strategy as those need who run it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from xrlhf.devices import Device

__all__ = ["OneProcess"]


@dataclass
class OneProcess:
    """A model that nobody else runs.

    Args:
        model: On its device.
        device: That device.
        seed: What random numbers follow from.
        rank: This process.
        world_size: All processes.
    """

    model: nn.Module
    device: Device
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    @property
    def module(self) -> nn.Module:
        return self.model

    def gather_objects(self, value: Any) -> list[Any]:
        """``value`` alone."""
        return [value]

    def on_first_rank(self, action: Callable[[], None]) -> None:
        """Do it."""
        action()

    def barrier(self) -> None:
        """Nobody is waited for."""

    def whole_weights(self, part: nn.Module) -> contextlib.AbstractContextManager[None]:
        """They are whole."""
        return contextlib.nullcontext()

    def full_weights(self, names: set[str]) -> dict[str, Tensor]:
        """The tensors of the model's state called ``names``, on the CPU."""
        return {name: value.detach().cpu() for name, value in self.model.state_dict().items() if name in names}
