"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives the name to write to in place of ``path``, and renames it to ``path`` when the block has succeeded.

    A reader finds the old content or the whole of the new one, never a part. The name holds this process's id, so
    that several processes may write one file at a time: the last to finish stays. The file is not forced to the disk,
    so a machine that loses power may lose it.

    Args:
        path: The file to write; one that exists is replaced. Its folder is made where it is missing.

    Yields:
        A name in the same folder, ``.NAME.PID.tmp``.

    Raises:
        OSError: The folder cannot be made, or the file not put in its place. After this or any error of the block,
            ``path`` is as it was and nothing is left beside it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield aside
        os.replace(aside, target)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
