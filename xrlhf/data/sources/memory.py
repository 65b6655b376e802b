"""Rows that are in memory already: practice data, tests, rows made by a program."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xrlhf.data.sources.base import (
    DEFAULT_ROWS_PER_CHUNK,
    RawRow,
    as_row,
    check_rows_per_chunk,
    rows_between,
)
from xrlhf.data.sources.fingerprint import combine
from xrlhf.errors import DataError
from xrlhf.registry import SOURCES

__all__ = ["ItemsChunk", "MemorySource"]


@dataclass(frozen=True)
class ItemsChunk:
    """Rows that are parsed already, with their place in a list.

    Args:
        name: What locations begin with.
        items: The rows, or whatever stands in their place.
        first_row: Number of the first one in the source.
        first_index: Index of the first one in its list.
    """

    name: str
    items: Sequence[Any]
    first_row: int
    first_index: int

    @property
    def num_rows(self) -> int:
        return len(self.items)

    def rows(self) -> Iterator[RawRow]:
        for offset, item in enumerate(self.items):
            yield RawRow(self.first_row + offset, f"{self.name}[{self.first_index + offset}]", as_row(item))


@SOURCES.register_module()
class MemorySource:
    """A source of rows given as a list.

    Args:
        items: The rows, each of which JSON can hold.
        name: What messages call the source.

    Raises:
        DataError: There are no rows, or JSON cannot hold one.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], name: str = "rows") -> None:
        if not items:
            raise DataError(f"{name}: zero rows")
        self.name = name
        self._items = list(items)

    def fingerprint(self, cache_dir: Path | None = None) -> str:
        try:
            return combine(["memory", *(json.dumps(item, sort_keys=True) for item in self._items)])
        except (TypeError, ValueError) as err:
            raise DataError(f"{self.name}: a row holds what JSON cannot ({err})") from err

    def num_rows_hint(self) -> int | None:
        return len(self._items)

    def chunks(self, rows_per_chunk: int = DEFAULT_ROWS_PER_CHUNK) -> Iterator[ItemsChunk]:
        check_rows_per_chunk(rows_per_chunk)
        for first in range(0, len(self._items), rows_per_chunk):
            yield ItemsChunk(self.name, self._items[first : first + rows_per_chunk], first, first)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[RawRow]:
        return rows_between(self.chunks(), start, stop)
