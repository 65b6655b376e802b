"""Work done ahead of time, by a thread, while the device computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

__all__ = ["prefetch"]

T = TypeVar("T")
_END = object()


def prefetch(items: Iterable[T], *, ahead: int = 2) -> Iterator[T]:
    """The same items in the same order, made by a thread up to ``ahead`` items before they are asked for.

    What making an item raises is raised where the item would have come.

    Args:
        items: Made by one thread, one after the other.
        ahead: Items that may lie ready, at least 1.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(1, thread_name_prefix="xrlhf-prefetch")
    try:
        ready = deque(pool.submit(next, iterator, cast(Any, _END)) for _ in range(ahead))
        while (item := ready.popleft().result()) is not _END:
            ready.append(pool.submit(next, iterator, cast(Any, _END)))
            yield item
    finally:
        # Nobody waits for the thread here: a run that failed may leave this to the garbage collector, which may come
        # while another thread is being started, and the two would wait for each other's locks for ever.
        pool.shutdown(wait=False, cancel_futures=True)
