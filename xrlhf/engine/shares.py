"""What one process holds of tensors that are split over several, and how the whole is read from what all have saved.

Every strategy splits a tensor into runs of its elements in order of memory: FSDP2 by rows, ZeRO where its flat buffers
end. So a share is a list of such runs, whatever the strategy, and any part of any tensor can be read from any shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xrlhf.errors import CheckpointError

__all__ = ["Share", "SharedTensors", "even_share", "join_shares", "part_of", "shape_of"]


@dataclass(frozen=True)
class Share:
    """Runs of a tensor's elements.

    Args:
        shape: Shape of the whole tensor.
        pieces: Where a run starts among the elements in order of memory, and its elements, 1-D; in any order.
    """

    shape: tuple[int, ...]
    pieces: tuple[tuple[int, Tensor], ...]

    @property
    def numel(self) -> int:
        """Elements of the whole tensor."""
        return torch.Size(self.shape).numel()

    def copied(self) -> dict[str, Any]:
        """This share as plain values, its elements on the CPU, in memory of their own and no larger than they are."""
        return {
            "shape": tuple(self.shape),
            "pieces": [(start, values.detach().to("cpu", copy=True)) for start, values in self.pieces],
        }

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Share:
        """The share that :meth:`copied` gave."""
        return cls(tuple(value["shape"]), tuple((start, values) for start, values in value["pieces"]))


def even_share(value: Tensor, rank: int, world_size: int) -> Share:
    """Part ``rank`` of ``world_size`` nearly equal ones of a tensor that every process holds whole."""
    flat = value.detach().reshape(-1)
    start, stop = (len(flat) * number // world_size for number in (rank, rank + 1))
    return Share(tuple(value.shape), ((start, flat[start:stop]),))


def join_shares(name: str, shares: Sequence[Share]) -> Share:
    """The shares of all processes as one, its pieces in order.

    Raises:
        CheckpointError: They do not make up the whole, or are of different tensors.
    """
    shapes = {share.shape for share in shares}
    pieces = [piece for share in shares for piece in share.pieces]
    joined = sorted((piece for piece in pieces if len(piece[1])), key=lambda piece: piece[0]) or pieces[:1]
    stop = 0
    for start, values in joined:
        if start != stop:
            break
        stop += len(values)
    if len(shapes) != 1 or not pieces or stop != torch.Size(next(iter(shapes))).numel():
        raise CheckpointError(f"its shards do not make up the whole of {name}")
    return Share(shares[0].shape, tuple(joined))


class SharedTensors(Mapping[str, Any]):
    """Tensors by name, put together from shares when they are asked for, beside values that are not shared.

    Args:
        shares: The joined share of each tensor.
        plain: Other values.
    """

    def __init__(self, shares: Mapping[str, Share], plain: Mapping[str, Any] | None = None) -> None:
        self._shares = shares
        self._plain = plain or {}

    def __getitem__(self, name: str) -> Any:
        if name in self._plain:
            return self._plain[name]
        share = self._shares[name]
        return self.part(name, 0, share.numel).view(share.shape)

    def __iter__(self) -> Iterator[str]:
        yield from self._shares
        yield from self._plain

    def __len__(self) -> int:
        return len(self._shares) + len(self._plain)

    def __contains__(self, name: object) -> bool:
        return name in self._shares or name in self._plain

    def shape(self, name: str) -> torch.Size | None:
        """Shape of a tensor, without reading it; None of a value that is no tensor."""
        if name in self._shares:
            return torch.Size(self._shares[name].shape)
        value = self._plain[name]
        return value.shape if isinstance(value, Tensor) else None

    def part(self, name: str, start: int, numel: int) -> Tensor:
        """The elements from ``start`` on, in order of memory, 1-D and in memory of their own."""
        pieces = self._shares[name].pieces
        found = torch.empty(numel, dtype=pieces[0][1].dtype)
        for begin, values in pieces:
            first, last = max(begin, start), min(begin + len(values), start + numel)
            if first < last:
                found[first - start : last - start] = values[first - begin : last - begin]
        return found


def part_of(values: Mapping[str, Any], name: str, start: int, numel: int) -> Tensor:
    """Elements of a tensor in memory of their own, whether it is saved whole or in shares; see `SharedTensors.part`."""
    if isinstance(values, SharedTensors):
        return values.part(name, start, numel)
    return values[name].flatten()[start : start + numel].clone()


def shape_of(values: Mapping[str, Any], name: str) -> torch.Size | None:
    """Shape of a tensor, whether it is saved whole or in shares; None of a value that is no tensor."""
    if isinstance(values, SharedTensors):
        return values.shape(name)
    value = values[name]
    return value.shape if isinstance(value, Tensor) else None
