"""Models by their shapes alone: tensors on torch's meta device, which have a shape and a type, and no values.

Inside :func:`shapes_alone` a model of any size is built in no memory: of a backbone its config is read, and none of its
weights. What training it would hold can then be watched (``xrlhf/engine/plan``); what it would score cannot.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from xrlhf.structures import PackedBatch, SegmentLayout

__all__ = ["are_shapes_alone", "batch_on_paper", "paper_mode", "put_on_paper", "shapes_alone"]


def shapes_alone() -> torch.device:
    """A context in which all tensors are made without values."""
    return torch.device("meta")


def are_shapes_alone(tensor: Tensor | None = None) -> bool:
    """Whether ``tensor`` has no values, or, without one, whether tensors that are made now have none."""
    return (torch.empty(0) if tensor is None else tensor).is_meta


def paper_mode() -> FakeTensorMode:
    """A context in which what is put on paper runs; where it meets tensors with values, it takes their shapes."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def put_on_paper(model: nn.Module, mode: FakeTensorMode) -> None:
    """Let a model that was built by its shapes believe that it is on a CPU, in place.

    Tensors without values take part in autocast only if they say that they are on a device that has it.

    Args:
        model: The model; weights that several modules share stay shared.
        mode: Under which it is going to run.
    """
    made: dict[int, Tensor] = {}

    def on_paper(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            own: Tensor = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
            if isinstance(tensor, nn.Parameter):
                own = nn.Parameter(own, requires_grad=tensor.requires_grad)
            made[id(tensor)] = own
        return made[id(tensor)]

    for module in model.modules():
        everything: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for held in everything:
            for name, value in list(held.items()):
                if isinstance(value, Tensor) and value.is_meta:
                    held[name] = on_paper(value)


@dataclass(frozen=True)
class _OwnLayout(SegmentLayout):
    number: int = field(default_factory=itertools.count().__next__)


def batch_on_paper(batch: PackedBatch, mode: FakeTensorMode) -> PackedBatch:
    """A batch for a model that is on paper, with a layout that equals no other.

    Attention keeps masks and indices for layouts it has seen; those that it makes here have no values, and no other
    batch may be given them.
    """
    columns = {column.name: getattr(batch.segments, column.name) for column in fields(SegmentLayout)}
    tensors: dict[str, Any] = {
        column.name: mode.from_tensor(value)
        for column in fields(batch)
        # Which states are read decides on shapes, so that column is read on the host and keeps its values.
        if isinstance(value := getattr(batch, column.name), Tensor) and column.name != "target_source"
    }
    return replace(batch, segments=_OwnLayout(**columns), **tensors)
