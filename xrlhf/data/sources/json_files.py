"""JSON Lines and JSON lists, plain or gzip-compressed.

JSON Lines is the format to use for large sets: the lines are handed out unparsed, a broken line costs one row, and
memory stays flat. A JSON list has to be parsed as a whole.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources.base import RawRow, as_row
from xrlhf.data.sources.memory import ItemsChunk
from xrlhf.errors import DataError

__all__ = [
    "GZIP_MAGIC",
    "JsonLinesChunk",
    "json_lines_chunks",
    "json_lines_rows_hint",
    "json_list_chunks",
    "open_bytes",
    "parse_line",
    "starts_with_spread_object",
]

GZIP_MAGIC = b"\x1f\x8b"
_MAX_CHUNK_BYTES = 8 << 20
_SAMPLE_BYTES = 1 << 20


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading, decompressed if it is gzip (told by content, not by name), after any UTF-8 mark.

    Raises:
        DataError: The file cannot be read, or the gzip data is cut off or damaged.
    """
    try:
        with open(path, "rb") as raw:
            compressed = raw.peek(2)[:2] == GZIP_MAGIC
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if compressed else raw
            if stream.read(3) != codecs.BOM_UTF8:
                stream.seek(0)
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise DataError(f"{path}: the gzip data is cut off or damaged ({err}); copy or download it again") from err
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror or err})") from err


def parse_line(line: bytes) -> Mapping[str, Any] | RowError:
    """One line of JSON Lines as a row, or what is wrong with it, in words that hold none of its text."""
    try:
        return as_row(json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as err:
        return RowError(Reason.NOT_JSON, f"byte 0x{line[err.start]:02x} at position {err.start + 1} is not UTF-8")
    except json.JSONDecodeError as err:
        return RowError(Reason.NOT_JSON, f"{err.msg} (column {err.pos + 1})")
    except RecursionError:
        return RowError(Reason.NOT_JSON, "nested too deeply")
    except ValueError:
        return RowError(Reason.NOT_JSON, "holds a number with too many digits")


@dataclass(frozen=True)
class JsonLinesChunk:
    """Whole lines of one file, as bytes; blank ones are no rows.

    Args:
        name: The file, as locations give it.
        data: The lines.
        first_row: Number of the first row in the source.
        num_rows: Lines that are not blank.
        first_line: Number of the first line in the file, from 1.
    """

    name: str
    data: bytes
    first_row: int
    num_rows: int
    first_line: int

    def rows(self) -> Iterator[RawRow]:
        row = self.first_row
        for number, line in enumerate(self.data.split(b"\n"), self.first_line):
            if line and not line.isspace():
                yield RawRow(row, f"{self.name}:{number}", parse_line(line))
                row += 1


def json_lines_chunks(path: Path, rows_per_chunk: int, first_row: int) -> Iterator[JsonLinesChunk]:
    """The lines of a file in chunks; ``first_row`` is the number of its first row in the source."""
    name = str(path)
    lines: list[bytes] = []
    num_rows = num_bytes = 0
    first_line = 1
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, 1):
            lines.append(line)
            num_bytes += len(line)
            num_rows += not line.isspace()
            if num_rows == rows_per_chunk or num_bytes >= _MAX_CHUNK_BYTES:
                if num_rows:
                    yield JsonLinesChunk(name, b"".join(lines), first_row, num_rows, first_line)
                first_row += num_rows
                lines, num_rows, num_bytes, first_line = [], 0, 0, number + 1
    if num_rows:
        yield JsonLinesChunk(name, b"".join(lines), first_row, num_rows, first_line)


def json_lines_rows_hint(path: Path) -> int | None:
    """Rows of a JSON Lines file, estimated from the length of its first lines; None where it is compressed."""
    with open(path, "rb") as stream:
        sample = stream.read(_SAMPLE_BYTES)
    if sample.startswith(GZIP_MAGIC):
        return None
    size = path.stat().st_size
    lines = sample.split(b"\n")
    if len(sample) == size:
        return sum(bool(line.strip()) for line in lines)
    whole = lines[:-1]
    if not whole:
        return None
    return round(size * sum(bool(line.strip()) for line in whole) / (len(sample) - len(lines[-1])))


def json_list_chunks(path: Path, rows_per_chunk: int, first_row: int) -> Iterator[ItemsChunk]:
    """The items of a file that holds one JSON list, in chunks.

    Raises:
        DataError: The file is not one valid JSON list: unlike a broken line, that leaves nothing to go on with.
    """
    with open_bytes(path) as stream:
        data = stream.read()
    try:
        items = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        raise DataError(f"{path}:{line}: byte 0x{data[err.start]:02x} is not UTF-8; save the file as UTF-8") from err
    except json.JSONDecodeError as err:
        if err.msg == "Extra data":
            raise DataError(
                f"{path}:{err.lineno}: the JSON list ends, yet text goes on; expected one list of objects, or one "
                "object a line"
            ) from err
        cut_off = "; the file may be cut off" if err.pos >= len(err.doc.rstrip()) else ""
        raise DataError(f"{path}:{err.lineno}: not valid JSON: {err.msg} (column {err.colno}){cut_off}") from err
    except RecursionError as err:
        raise DataError(f"{path}: not valid JSON: nested too deeply") from err
    except ValueError as err:
        raise DataError(f"{path}: not valid JSON: holds a number with too many digits") from err
    for first in range(0, len(items), rows_per_chunk):
        yield ItemsChunk(str(path), items[first : first + rows_per_chunk], first_row + first, first)


def starts_with_spread_object(head: bytes) -> bool:
    """Whether text that begins with ``{`` is an object spread over several lines rather than JSON Lines.

    Args:
        head: The beginning of the file; a last line that may be cut off is best left out.
    """
    lines = [line for line in head.split(b"\n") if line.strip()]
    if len(lines) < 2:
        return False
    try:
        json.loads(lines[0])
        return False
    except json.JSONDecodeError as err:
        if err.pos < len(err.doc.rstrip()):
            return False
    except (ValueError, RecursionError):
        return False
    # A first line that was cut off leaves the second line whole; the inside of an object is not an object.
    return not isinstance(parse_line(lines[1]), Mapping)
