"""Data files on disk: found by path, folder or glob, and told apart by what is in them, never by their names."""

from __future__ import annotations

import codecs
import difflib
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Union

from xrlhf.data.sources.base import (
    DEFAULT_ROWS_PER_CHUNK,
    Chunk,
    RawRow,
    check_rows_per_chunk,
    rows_between,
)
from xrlhf.data.sources.fingerprint import combine, file_digest
from xrlhf.data.sources.json_files import (
    GZIP_MAGIC,
    json_lines_chunks,
    json_lines_rows_hint,
    json_list_chunks,
    open_bytes,
    starts_with_spread_object,
)
from xrlhf.data.sources.tables import parquet_chunks, parquet_num_rows
from xrlhf.errors import DataError
from xrlhf.registry import SOURCES

__all__ = ["DATA_SUFFIXES", "DataFile", "FileKind", "FilesSource", "find_files", "missing_path", "sniff"]

PathLike = Union[str, "os.PathLike[str]"]

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".jsonl.gz", ".ndjson.gz", ".json.gz")
"""Names that a folder is searched for. A file named outright may be called anything."""

_HEAD_BYTES = 1 << 20
_GLOB_CHARACTERS = re.compile(r"[*?\[]")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
# The name that data sets on the hub give to part i of n of a split.
_HUB_PART = re.compile(r"(.+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.parquet")
_OTHER_FORMATS = (
    (b"\x28\xb5\x2f\xfd", "is compressed with Zstandard; decompress it (zstd -d)"),
    (b"\xfd7zXZ\x00", "is compressed with xz; decompress it (xz -d)"),
    (b"BZh", "is compressed with bzip2; decompress it (bzip2 -d)"),
    (b"PK\x03\x04", "is a zip archive; unpack it and name the files inside"),
    (b"ARROW1", "is a lone Arrow file; name the folder that save_to_disk wrote, or a Parquet file"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the data; fetch it (git lfs pull)"),
    (codecs.BOM_UTF16_LE, "is UTF-16 text; save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "is UTF-16 text; save it as UTF-8"),
)
_TAR_MAGIC = slice(257, 262)


class FileKind(str, Enum):
    """What a data file holds."""

    JSON_LINES = "JSON Lines"
    JSON_LIST = "JSON list"
    PARQUET = "Parquet"


@dataclass(frozen=True)
class DataFile:
    """One file and what it holds."""

    path: Path
    kind: FileKind

    def chunks(self, rows_per_chunk: int, first_row: int) -> Iterator[Chunk]:
        """The rows of the file in chunks; ``first_row`` is the number of its first row in the source."""
        if self.kind is FileKind.PARQUET:
            return parquet_chunks(self.path, rows_per_chunk, first_row)
        if self.kind is FileKind.JSON_LIST:
            return json_list_chunks(self.path, rows_per_chunk, first_row)
        return json_lines_chunks(self.path, rows_per_chunk, first_row)

    def num_rows_hint(self) -> int | None:
        if self.kind is FileKind.PARQUET:
            return parquet_num_rows(self.path)
        return json_lines_rows_hint(self.path) if self.kind is FileKind.JSON_LINES else None


def sniff(path: Path) -> FileKind:
    """What a file holds, from its first megabyte.

    Raises:
        DataError: It cannot be read, has no rows, or is nothing that xrlhf reads; the message says what it is instead
            and what to do.
    """
    with open_bytes(path) as stream:
        head = stream.read(_HEAD_BYTES)
    with open(path, "rb") as raw:
        compressed = raw.read(2) == GZIP_MAGIC
    if head.startswith(b"PAR1"):
        if compressed:
            raise DataError(f"{path}: is a Parquet file inside gzip; decompress it (gunzip)")
        return FileKind.PARQUET
    for magic, advice in _OTHER_FORMATS:
        if head.startswith(magic):
            raise DataError(f"{path}: {advice}")
    if head[_TAR_MAGIC] == b"ustar":
        raise DataError(f"{path}: is a tar archive; unpack it and name the files inside")
    text = head.lstrip()
    if not text and len(head) < _HEAD_BYTES:
        raise DataError(f"{path}: zero rows; the file is empty")
    if text.startswith(b"["):
        return FileKind.JSON_LIST
    if b"\x00" in text:
        raise DataError(f"{path}: is binary, not text; expected JSON Lines, a JSON list of objects, or Parquet")
    if text.startswith(b"{") and starts_with_spread_object(_whole_lines(text, len(head))):
        raise DataError(
            f"{path}: begins with one object spread over several lines; expected one object a line, or one list of "
            "objects (if the rows lie under a key of that object, write that list to a file of its own)"
        )
    return FileKind.JSON_LINES


def _whole_lines(text: bytes, num_bytes_read: int) -> bytes:
    """``text`` without a last line that the end of the sample may have cut."""
    return text if num_bytes_read < _HEAD_BYTES else text[: text.rfind(b"\n") + 1]


@SOURCES.register_module()
class FilesSource:
    """Rows of one or several data files: JSON Lines, JSON lists (both plain or gzip) and Parquet, freely mixed.

    Args:
        paths: A file, a folder of data files, a glob, or a list of these. Files of a folder or glob are read in the
            order of their names (numbers in names count as numbers), those of a list in the order of the list.
        split: For folders whose file names tell splits (``train-00000.parquet``, ``test/part.jsonl``): which to take.

    Raises:
        DataError: A path does not exist, a file is empty or nothing that can be read, or a folder is ambiguous.
    """

    def __init__(self, paths: PathLike | Sequence[PathLike], *, split: str | None = None) -> None:
        found = find_files(paths, split=split)
        self.files = [DataFile(path, sniff(path)) for path in found]
        if isinstance(paths, (str, os.PathLike)):
            self.name = os.fspath(paths) + (f" ({split})" if split else "")
        else:
            self.name = str(found[0]) + (f" and {len(found) - 1} more" if len(found) > 1 else "")

    def fingerprint(self, cache_dir: Path | None = None) -> str:
        return combine(["files", *(file_digest(file.path, cache_dir) for file in self.files)])

    def num_rows_hint(self) -> int | None:
        total = 0
        for file in self.files:
            hint = file.num_rows_hint()
            if hint is None:
                return None
            total += hint
        return total

    def chunks(self, rows_per_chunk: int = DEFAULT_ROWS_PER_CHUNK) -> Iterator[Chunk]:
        check_rows_per_chunk(rows_per_chunk)
        next_row = 0
        for file in self.files:
            first_row = next_row
            for chunk in file.chunks(rows_per_chunk, first_row):
                next_row = chunk.first_row + chunk.num_rows
                yield chunk
            if next_row == first_row:
                raise DataError(f"{file.path}: zero rows")

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[RawRow]:
        return rows_between(self.chunks(), start, stop)


def find_files(paths: PathLike | Sequence[PathLike], *, split: str | None = None) -> list[Path]:
    """The data files that ``paths`` names, in reading order.

    Raises:
        DataError: Nothing is found, one file is found twice, or a folder holds several splits or formats.
    """
    wanted = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not wanted:
        raise DataError("the list of data files is empty")
    found: dict[str, str] = {}
    files: list[Path] = []
    for item in wanted:
        for path in _expand(os.fspath(item), split):
            real = os.path.realpath(path)
            if real in found:
                raise DataError(f"{path}: named twice, by {found[real]!r} and by {os.fspath(item)!r}")
            found[real] = os.fspath(item)
            files.append(path)
    return files


def _expand(spec: str, split: str | None) -> Iterable[Path]:
    if not spec.strip():
        raise DataError("a path of a data file is empty")
    path = Path(spec).expanduser()
    if path.is_dir():
        return _files_of_folder(path, split)
    if split is not None:
        raise DataError(f"{spec}: split={split!r} chooses among the files of a folder, but this is not a folder")
    if path.exists():
        return [path]
    if _GLOB_CHARACTERS.search(spec):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True) if os.path.isfile(match)]
        if not matches:
            raise DataError(f"{spec}: no file matches{_looking_at(path)}")
        return sorted(matches, key=_natural_order)
    raise missing_path(spec)


def _files_of_folder(folder: Path, split: str | None) -> list[Path]:
    files = [
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(DATA_SUFFIXES)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise DataError(f"{folder}: no data files in this folder; looked for {', '.join(DATA_SUFFIXES)}")
    by_split = Counter(_split_of(path.relative_to(folder)) for path in files)
    found = ", ".join(f"{name or 'no split named'} ({count})" for name, count in by_split.most_common())
    if split is not None:
        chosen = _SPLIT_NAMES.get(split, split)
        files = [path for path in files if _split_of(path.relative_to(folder)) == chosen]
        if not files:
            raise DataError(f"{folder}: no file name tells split {split!r}; found files of {found}")
    elif len(by_split) > 1:
        raise DataError(f"{folder}: files of several splits, {found}; choose one with split= or a glob")
    kinds = Counter("Parquet" if path.suffix.lower() == ".parquet" else "JSON" for path in files)
    if len(kinds) > 1:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise DataError(f"{folder}: {counts} files, perhaps the same rows twice; choose with a glob or a list of files")
    return sorted(files, key=_natural_order)


def _split_of(path: Path) -> str | None:
    """The split that a file's name, or else a folder above it, tells; None where neither does."""
    if part_of_split := _HUB_PART.fullmatch(path.name):
        name = part_of_split[1]
        return _SPLIT_NAMES.get(name, name)
    for part in reversed(path.parts):
        for word in re.split(r"[-_.]", part.lower()):
            if word in _SPLIT_NAMES:
                return _SPLIT_NAMES[word]
    return None


def _natural_order(path: Path) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"[0-9]+|[^0-9]+", str(path))]


def missing_path(spec: str) -> DataError:
    """The error for a path that does not exist: it says how far the path goes, and what lies there instead."""
    path = Path(spec).expanduser()
    for parent in path.parents:
        if parent.exists():
            if parent != path.parent:
                return DataError(f"{spec}: not found; there is no folder {path.parent}{_looking_at(path)}")
            break
    return DataError(f"{spec}: not found{_looking_at(path)}")


def _looking_at(path: Path) -> str:
    """What an error adds about the deepest folder of ``path`` that exists: names like the one asked for, or any."""
    missing = path
    while not missing.parent.is_dir():
        if missing.parent == missing:
            return ""
        missing = missing.parent
    try:
        names = [entry.name for entry in itertools.islice(os.scandir(missing.parent), 10_000)]
    except OSError:
        return ""
    shown = missing.parent if str(missing.parent) != "." else "the working directory"
    close = difflib.get_close_matches(missing.name, names, n=3, cutoff=0.5)
    if close:
        return f"; nearest in {shown}: {', '.join(close)}"
    visible = sorted(name for name in names if not name.startswith("."))
    if not visible:
        return f"; {shown} is empty"
    more = f" and {len(visible) - 5} more" if len(visible) > 5 else ""
    return f"; {shown} holds {', '.join(visible[:5])}{more}"
