"""Work that goes on beside training, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["BackgroundWork"]

T = TypeVar("T")


class BackgroundWork(Generic[T]):
    """Runs ``work`` in a thread, which does not keep the process alive.

    Attributes:
        error: What ``work`` raised; None while it runs, and where it succeeded.
        result: What ``work`` returned.
        seconds: What it took.
    """

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self.error: BaseException | None = None
        self.result: T | None = None
        self.seconds = 0.0
        self._work = work
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.perf_counter()
        try:
            self.result = self._work()
        except BaseException as error:
            # Whatever it is, it belongs to the thread that waits.
            self.error = error
        finally:
            self.seconds = time.perf_counter() - began
            # What the work holds, such as a copy of the weights, is needed no more.
            del self._work

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return when the work has ended, well or not."""
        self._thread.join()
