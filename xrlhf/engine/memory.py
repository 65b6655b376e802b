"""Running out of memory, said in terms of what was being computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from xrlhf.errors import TrainingError, error_line

__all__ = ["is_out_of_memory", "naming_what_needs_memory"]

_SAID_BY_ALLOCATORS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left for what was asked of it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU's allocator and some accelerators' raise plain RuntimeErrors.
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _SAID_BY_ALLOCATORS)


@contextmanager
def naming_what_needs_memory(describe: Callable[[], str]) -> Iterator[None]:
    """Turns running out of memory in the block into one line.

    Args:
        describe: What the block was doing and what would make it smaller; asked only when it is needed. The
            allocator's own words are put behind it.

    Raises:
        TrainingError: There was no memory left.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"{describe()} ({error_line(error)})") from error
