"""Consecutive rows put together, for formats that need several rows for one preference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources.base import (
    DEFAULT_ROWS_PER_CHUNK,
    Chunk,
    RawRow,
    check_rows_per_chunk,
    rows_between,
)
from xrlhf.data.sources.fingerprint import combine
from xrlhf.data.sources.opening import SourceSpec, open_source
from xrlhf.errors import ConfigError
from xrlhf.registry import SOURCES

__all__ = ["JoinedChunk", "JoinedRowsSource"]


@dataclass(frozen=True)
class JoinedChunk:
    """Rows of other chunks, joined where this one is parsed.

    Args:
        chunks: Consecutive chunks that hold the rows, and perhaps more.
        start: Number of the first row to be joined, as the chunks count.
        stop: Number of the row behind the last one.
        count: Rows that make one; the last one has fewer where the source ends.
    """

    chunks: tuple[Chunk, ...]
    start: int
    stop: int
    count: int

    @property
    def first_row(self) -> int:
        return self.start // self.count

    @property
    def num_rows(self) -> int:
        return -(-(self.stop - self.start) // self.count)

    def rows(self) -> Iterator[RawRow]:
        rows = list(rows_between(self.chunks, self.start, self.stop))
        for first in range(0, len(rows), self.count):
            yield self._joined(self.first_row + first // self.count, rows[first : first + self.count])

    def _joined(self, number: int, rows: list[RawRow]) -> RawRow:
        location = rows[0].location
        for row in rows:
            if isinstance(row.value, RowError):
                return RawRow(number, row.location, row.value)
        if len(rows) < self.count:
            detail = f"the source ends after {len(rows)} of {self.count} rows that belong together"
            return RawRow(number, location, RowError(Reason.MISSING_COLUMN, detail))
        return RawRow(number, location, {"rows": [row.value for row in rows]})


@SOURCES.register_module()
class JoinedRowsSource:
    """Every ``count`` consecutive rows of another source as one row, ``{"rows": [first, second, ...]}``.

    Rows are joined in the order of the files, before anything is shuffled. A joined row has the place of its first row;
    one that cannot be read spoils the joined row it belongs to and no other.

    Args:
        source: A path, a list of paths, a hub name, a dict of options, or a source.
        count: Rows that make one, 2 or more.

    Raises:
        ConfigError: ``count`` is below 2.
        DataError: The source cannot be opened.
    """

    def __init__(self, source: SourceSpec, *, count: int = 2) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 2:
            raise ConfigError(f"JoinedRowsSource: count is {count!r}; expected a whole number of 2 or more")
        self.source = open_source(source)
        self.count = count
        self.name = self.source.name

    def fingerprint(self, cache_dir: Path | None = None) -> str:
        return combine(["joined", str(self.count), self.source.fingerprint(cache_dir)])

    def num_rows_hint(self) -> int | None:
        hint = self.source.num_rows_hint()
        return None if hint is None else -(-hint // self.count)

    def chunks(self, rows_per_chunk: int = DEFAULT_ROWS_PER_CHUNK) -> Iterator[JoinedChunk]:
        check_rows_per_chunk(rows_per_chunk)
        held: list[Chunk] = []
        start = stop = 0
        for chunk in self.source.chunks(rows_per_chunk * self.count):
            held.append(chunk)
            stop = chunk.first_row + chunk.num_rows
            whole = stop - (stop - start) % self.count
            if whole > start:
                yield JoinedChunk(tuple(held), start, whole, self.count)
                start = whole
            # Chunks may end anywhere: rows that are still without their fellows wait for the next one.
            held = [kept for kept in held if kept.first_row + kept.num_rows > start]
        if held:
            yield JoinedChunk(tuple(held), start, stop, self.count)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[RawRow]:
        return rows_between(self.chunks(), start, stop)
