"""What every source of rows has: a name, a fingerprint of its content, and chunks of rows that workers parse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from xrlhf.data.reasons import Reason, RowError, kind_of

__all__ = ["DEFAULT_ROWS_PER_CHUNK", "Chunk", "RawRow", "Source", "as_row", "check_rows_per_chunk", "rows_between"]

DEFAULT_ROWS_PER_CHUNK = 1024
"""Enough rows to hide the cost of handing a chunk to a worker, few enough to keep several workers busy."""


class RawRow(NamedTuple):
    """One row as a source has it, before a map function sees it.

    Args:
        row: Number of the row in its source, from 0, running on through all files of the source. A broken row has
            a number as well.
        location: Where a reader finds it: ``file.jsonl:17`` (line, from 1) in JSON Lines, ``file.json[16]`` (item,
            from 0) in everything else.
        value: The row, or what makes it unreadable.
    """

    row: int
    location: str
    value: Mapping[str, Any] | RowError


class Chunk(Protocol):
    """Consecutive rows of a source, not parsed yet: cheap to make, small to pickle, parsed where ``rows`` is called."""

    @property
    def first_row(self) -> int:
        """Number of its first row in the source."""

    @property
    def num_rows(self) -> int:
        """Rows in the chunk, broken ones included."""

    def rows(self) -> Iterator[RawRow]:
        """Parses the rows, in order."""


@runtime_checkable
class Source(Protocol):
    """Where rows come from. One process walks over the chunks; any process may parse them."""

    @property
    def name(self) -> str:
        """What messages and reports call the source."""

    def fingerprint(self, cache_dir: Path | None = None) -> str:
        """Hash of the content: the bytes of the files in their order, whatever they are called and wherever they lie.

        Args:
            cache_dir: Folder in which hashes of files are remembered, so that a large file is read for its hash
                only once. None reads every time.
        """

    def num_rows_hint(self) -> int | None:
        """About how many rows there are, for a progress bar; None where that would need reading everything."""

    def chunks(self, rows_per_chunk: int = DEFAULT_ROWS_PER_CHUNK) -> Iterator[Chunk]:
        """All rows in order, in chunks of at most ``rows_per_chunk``.

        Raises:
            DataError: A file is unreadable or holds no row. A single unreadable row does not raise.
        """

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[RawRow]:
        """The rows with numbers ``start <= row < stop``; chunks outside are passed over without parsing."""


def rows_between(chunks: Iterable[Chunk], start: int = 0, stop: int | None = None) -> Iterator[RawRow]:
    """The rows of ``chunks`` with numbers ``start <= row < stop``, parsing no chunk that has none of them."""
    for chunk in chunks:
        if stop is not None and chunk.first_row >= stop:
            return
        if chunk.first_row + chunk.num_rows <= start:
            continue
        for row in chunk.rows():
            if row.row >= start and (stop is None or row.row < stop):
                yield row


def as_row(value: Any) -> Mapping[str, Any] | RowError:
    """``value`` if it is an object, otherwise the error that says what it is instead."""
    if isinstance(value, Mapping):
        return value
    return RowError(Reason.NOT_AN_OBJECT, f"the row is {kind_of(value)}; expected an object with named columns")


def check_rows_per_chunk(rows_per_chunk: int) -> None:
    """Raises ValueError unless ``rows_per_chunk`` is at least 1."""
    if rows_per_chunk < 1:
        raise ValueError(f"rows_per_chunk is {rows_per_chunk}; expected 1 or more")
