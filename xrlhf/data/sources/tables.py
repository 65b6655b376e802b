"""Rows of Arrow tables: Parquet files, and data sets that the ``datasets`` package keeps.

A chunk carries the columns as Arrow has them; turning them into Python objects, which is most of the work, is left to
whoever parses the chunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources.base import RawRow
from xrlhf.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ArrowChunk", "arrow_chunk", "parquet_chunks", "parquet_num_rows"]


@dataclass(frozen=True)
class ArrowChunk:
    """Rows of a table as an Arrow IPC stream.

    Args:
        name: What locations begin with.
        data: The stream.
        first_row: Number of the first row in the source.
        num_rows: Rows in the stream.
        first_index: Index of the first row in its file or table.
    """

    name: str
    data: bytes
    first_row: int
    num_rows: int
    first_index: int

    def rows(self) -> Iterator[RawRow]:
        import pyarrow as pa

        table = pa.ipc.open_stream(self.data).read_all()
        decoders = {field.name: decode for field in table.schema if (decode := _json_decoder(field.type))}
        for offset, value in enumerate(table.to_pylist()):
            location = f"{self.name}[{self.first_index + offset}]"
            yield RawRow(self.first_row + offset, location, _decoded(value, decoders) if decoders else value)


def _decoded(row: dict[str, Any], decoders: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any] | RowError:
    try:
        return {name: decoders[name](value) if name in decoders else value for name, value in row.items()}
    except ValueError as err:
        return RowError(Reason.NOT_JSON, f"a column is marked as JSON but does not parse ({err})")


def _json_decoder(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What turns a value of a column into Python objects where Arrow keeps JSON text in it; None elsewhere.

    Columns of mixed type, such as ``content`` being text in one message and a list in another, are kept that way.
    """
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name != "arrow.json":
            return None
        return lambda value: None if value is None else json.loads(value)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        decode_item = _json_decoder(kind.value_type)
        if decode_item is None:
            return None
        return lambda value: None if value is None else [decode_item(item) for item in value]
    if pa.types.is_struct(kind):
        decoders = {field.name: decode for field in kind if (decode := _json_decoder(field.type))}
        if not decoders:
            return None
        return lambda value: (
            None
            if value is None
            else {key: decoders[key](item) if key in decoders else item for key, item in value.items()}
        )
    return None


def arrow_chunk(table: pa.Table | pa.RecordBatch, name: str, first_row: int, first_index: int) -> ArrowChunk:
    """A chunk of all rows of ``table``."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return ArrowChunk(name, sink.getvalue().to_pybytes(), first_row, table.num_rows, first_index)


def parquet_num_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer.

    Raises:
        DataError: The file is cut off, damaged or encrypted.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as err:
        raise _unreadable(path, err) from err


def parquet_chunks(path: Path, rows_per_chunk: int, first_row: int) -> Iterator[ArrowChunk]:
    """The rows of a Parquet file in chunks; ``first_row`` is the number of its first row in the source.

    Raises:
        DataError: The file is cut off, damaged or encrypted.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=rows_per_chunk):
                yield arrow_chunk(batch, str(path), first_row + index, index)
                index += batch.num_rows
    except (pa.ArrowException, OSError) as err:
        raise _unreadable(path, err) from err


def _unreadable(path: Path, err: Exception) -> DataError:
    first_line = str(err).split("\n", 1)[0][:200]
    return DataError(f"{path}: not a readable Parquet file ({first_line}); copy or download it again")
