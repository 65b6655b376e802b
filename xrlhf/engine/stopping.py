"""Signals that ask a run to save and stop, as clusters send them before they take a machine away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["STOPPED", "STOP_SIGNALS", "StopRequest"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

STOPPED = 75
"""Exit status of a run that has saved and stopped because a signal asked for it: EX_TEMPFAIL, "try again later"."""


class StopRequest:
    """Whether this process was sent a stop signal. Any number of signals are one request.

    Attributes:
        signal_name: Of the first signal, None while there was none.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @property
    def is_made(self) -> bool:
        return self.signal_name is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take stop signals as requests while the block runs; only the main thread can, others get none.

        Before and after it a stop signal ends the process, as signals do: there is nothing to save.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is None:
            self.signal_name = signal.Signals(number).name
