"""Several processes that share one port, each with a model of its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType

from xrlhf.errors import LaunchError, TrainingError, UserError
from xrlhf.serving.metrics import METRICS_FOLDER
from xrlhf.serving.settings import ServerSettings

__all__ = ["serve_with_workers"]

logger = logging.getLogger("xrlhf")

_READY = "ready"
_GRACE_SECONDS = 15.0
"""What a worker gets beyond the time for draining before it is killed."""


def serve_with_workers(settings: ServerSettings, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve with ``settings.workers`` processes until a signal comes.

    Args:
        settings: The server.
        listening: The socket that all accept connections from; the kernel gives each connection to one of them.
        ready: Called once, when all of them are.

    Raises:
        UserError: The model cannot be loaded, or the device not used.
        TrainingError: A worker ended although nobody asked it to; the others are ended then, so that whoever watches
            the server starts it anew.
    """
    # Not fork: torch has threads by now.
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="xrlhf-metrics-") as folder, _environment(METRICS_FOLDER, folder):
        channels: list[Connection] = []
        processes: list[BaseProcess] = []
        for number in range(settings.workers):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(settings, listening, theirs, number), name=f"worker {number}")
            process.start()
            theirs.close()
            channels.append(ours)
            processes.append(process)
        with _signals_passed_on(processes) as told:
            try:
                _wait_until_ready(channels, processes, told)
                if not told:
                    ready()
                _wait_for_the_end(processes, told)
            finally:
                _end(processes, settings.limits.drain_seconds + _GRACE_SECONDS)


def _work(settings: ServerSettings, listening: socket.socket, channel: Connection, number: int) -> None:
    """One worker; what goes wrong is told to the process that started it."""
    from xrlhf.preload import quieten_libraries, set_library_environment

    set_library_environment()
    quieten_libraries()
    # A key that interrupts the terminal's processes reaches the parent alone, which passes it on once.
    os.setsid()
    threading.Thread(target=_end_with_parent, name="xrlhf-parent", daemon=True).start()
    import torch

    from xrlhf.serving.server import serve

    torch.set_num_threads(max(1, torch.get_num_threads() // settings.workers))
    try:
        serve(settings, listening, lambda: channel.send((_READY, "")), worker=number)
    except UserError as error:
        channel.send((type(error).__name__, str(error)))
        sys.exit(2)


def _end_with_parent() -> None:
    """Nobody would end a worker whose parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _wait_until_ready(channels: list[Connection], processes: list[BaseProcess], told: list[int]) -> None:
    waiting = dict(zip(channels, processes, strict=True))
    while waiting and not told:
        for channel in wait(list(waiting), timeout=0.2):
            assert isinstance(channel, Connection)
            process = waiting.pop(channel)
            try:
                kind, text = channel.recv()
            except EOFError:
                kind, text = "", "it ended without a word"
            if kind == _READY or told:
                continue
            if kind:
                raise LaunchError(text)
            raise TrainingError(f"{process.name} of the server failed while it started: {text}")


def _wait_for_the_end(processes: list[BaseProcess], told: list[int]) -> None:
    """Until every worker has ended, or one has although nobody asked it to."""
    while any(process.is_alive() for process in processes):
        wait([process.sentinel for process in processes if process.is_alive()], timeout=0.5)
        gone = next((process for process in processes if not process.is_alive()), None)
        if gone is not None and not told:
            raise TrainingError(f"{gone.name} of the server ended with status {gone.exitcode}, so the others end too")


def _end(processes: list[BaseProcess], seconds: float) -> None:
    for process in processes:
        if process.is_alive():
            process.terminate()
    latest = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, latest - time.monotonic()))
        if process.is_alive():
            logger.warning("%s did not end in time and is killed", process.name)
            process.kill()
            process.join()


@contextmanager
def _signals_passed_on(processes: list[BaseProcess]) -> Iterator[list[int]]:
    """Pass SIGTERM and SIGINT on to the workers; gives the list of those that came."""
    told: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        for process in processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
