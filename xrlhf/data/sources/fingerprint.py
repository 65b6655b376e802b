"""Hashes of file contents, remembered so that a large file is read for its hash only once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from xrlhf.errors import DataError
from xrlhf.files import replacing

__all__ = ["combine", "file_digest"]

_DIGEST_BYTES = 16
_BLOCK_BYTES = 1 << 22
_MEMORY_FILE = "file_hashes.json"
# A file changed twice within one tick of the file system's clock keeps its modification time, so a hash is
# remembered only once the file has been left alone for longer than the coarsest tick in use (FAT: two seconds).
_SETTLED_NS = 3_000_000_000


def combine(parts: Iterable[str | bytes]) -> str:
    """One hash over ``parts``; the borders between them count."""
    whole = blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little"))
        whole.update(data)
    return whole.hexdigest()


def file_digest(path: str | os.PathLike[str], cache_dir: Path | None = None) -> str:
    """Hash of the bytes of one file.

    Args:
        path: The file.
        cache_dir: Folder that keeps ``file_hashes.json``, where the hash is remembered under the file's path, size
            and modification time; made if absent. None remembers nothing.

    Returns:
        32 hexadecimal digits (BLAKE2b).

    Raises:
        DataError: The file cannot be read.
    """
    try:
        before = os.stat(path)
        key = f"{os.path.realpath(path)}|{before.st_size}|{before.st_mtime_ns}"
        if cache_dir is not None and (known := _load(cache_dir).get(key)):
            return known
        whole = blake2b(digest_size=_DIGEST_BYTES)
        with open(path, "rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                whole.update(block)
        after = os.stat(path)
    except OSError as err:
        raise DataError(f"{os.fspath(path)}: cannot be read ({err.strerror or err})") from err
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{os.fspath(path)}: changed while it was being read; start again when it is complete")
    digest = whole.hexdigest()
    if cache_dir is not None and time.time_ns() - after.st_mtime_ns > _SETTLED_NS:
        _remember(cache_dir, key, digest)
    return digest


def _load(cache_dir: Path) -> dict[str, str]:
    try:
        known = json.loads((cache_dir / _MEMORY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(cache_dir: Path, key: str, digest: str) -> None:
    """Adds one hash. It only saves time, so a folder that cannot be written to is no error."""
    path = key.split("|", 1)[0]
    known = {k: v for k, v in _load(cache_dir).items() if k.split("|", 1)[0] != path}
    known[key] = digest
    with suppress(OSError), replacing(cache_dir / _MEMORY_FILE) as aside:
        aside.write_text(json.dumps(known, indent=0, sort_keys=True), encoding="utf-8")
