"""Files that are on the disk when the call returns, hashed while they are written, and plain enough to load safely."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["FileRecord", "file_problem", "refuse_unsafe", "sync_folder", "write_json", "write_state"]

# Exact types: a subclass (a numpy float is one of float) is pickled as an object, which a safe load refuses.
_PLAIN = (str, bytes, int, float, bool, type(None), torch.Tensor, torch.nn.Parameter)
_MAPPINGS = (dict, OrderedDict)
_SEQUENCES = (list, tuple, set, torch.Size)


@dataclass(frozen=True)
class FileRecord:
    """What a manifest says of a file: its name, its size in bytes, and its SHA-256."""

    name: str
    size: int
    sha256: str


class _HashingFile:
    """A file that hashes what is written to it, so a checkpoint need not be read back.

    ``failure`` keeps the first error of the file system: torch's writer reports another one in its place.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self._digest.update(data)
        self.size += memoryview(data).nbytes
        return written

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> str:
        """Bring everything to the disk; the SHA-256 of it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        # Closing tries once more to write what the disk had no room for.
        with contextlib.suppress(OSError):
            self._file.close()


def write_state(state: Mapping[str, Any], path: Path) -> FileRecord:
    """Write tensors and plain values as ``torch.save`` does, and bring them to the disk.

    Args:
        state: What :func:`refuse_unsafe` lets pass.
        path: The file; what an error leaves of it is the caller's to remove.

    Raises:
        OSError: The file system's own error.
        RuntimeError: torch's writer gave up for another reason.
    """
    file = _HashingFile(path)
    try:
        torch.save(dict(state), file)  # type: ignore[arg-type]
        digest = file.close()
    except BaseException as error:
        file.abandon()
        if isinstance(error, RuntimeError) and file.failure is not None:
            raise file.failure from error
        raise
    return FileRecord(path.name, file.size, digest)


def write_json(value: Any, path: Path) -> None:
    """Write ``value`` and bring it to the disk.

    Raises:
        OSError: It cannot be written.
    """
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_problem(path: Path, size: int, sha256: str) -> str | None:
    """How a file differs from its record, in a few words; None where it does not."""
    try:
        if path.stat().st_size != size:
            return f"it has {path.stat().st_size} bytes in place of {size}"
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 22):
                digest.update(block)
    except FileNotFoundError:
        return "the file is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None if digest.hexdigest() == sha256 else "its content does not match its checksum"


def refuse_unsafe(value: Any, where: str = "checkpoint") -> None:
    """Refuse what ``torch.load(weights_only=True)`` would refuse.

    Raises:
        TypeError: ``value`` holds something else than tensors and plain values; the message says where.
    """
    if type(value) in _MAPPINGS:
        for key, item in value.items():
            if type(key) not in _PLAIN:
                raise TypeError(f"{where} has a key of type {type(key).__name__}: only plain values may be keys")
            refuse_unsafe(item, f"{where}[{key!r}]")
    elif type(value) in _SEQUENCES:
        for number, item in enumerate(value):
            refuse_unsafe(item, f"{where}[{number}]")
    elif type(value) not in _PLAIN:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"{where} is a {kind}: only tensors and plain values may be saved")
