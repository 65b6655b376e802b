"""One process of several gives way to the others."""

from __future__ import annotations

import os
import signal
import threading
import time

__all__ = ["linger", "when_ended"]

_SECONDS = 5.0


def when_ended(status: int) -> None:
    """Give a process that its launcher ends from now on, because of another one's error, the status of its own.

    Launchers that report the largest status would otherwise report the signal that they sent.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(status))


def linger(status: int) -> None:
    """Wait for the launcher to end this process, because another has failed before it or says the same."""
    when_ended(status)
    time.sleep(_SECONDS)
