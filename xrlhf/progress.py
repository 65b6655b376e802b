"""Progress bars on a terminal, silence in a log file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

__all__ = ["progress_bar", "track"]

T = TypeVar("T")


@contextmanager
def progress_bar(label: str, total: int | None, unit: str) -> Iterator[tqdm]:
    """A bar to be moved with ``bar.update(n)``; drawn on a terminal and by the first rank alone."""
    hidden = True if os.environ.get("RANK", "0") != "0" else None
    with tqdm(total=total, desc=label, unit=unit, disable=hidden, dynamic_ncols=True, unit_scale=True) as bar:
        yield bar


def track(items: Iterable[T], label: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Iterate over ``items`` under a bar."""
    with progress_bar(label, total, unit) as bar:
        for item in items:
            yield item
            bar.update(1)
