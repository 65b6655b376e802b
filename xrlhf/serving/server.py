"""A server's life in one process: it answers at once, loads its model, scores, and drains when it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from xrlhf.serving.app import build_app
from xrlhf.serving.metrics import Metrics
from xrlhf.serving.model import ServedModel
from xrlhf.serving.service import RewardService
from xrlhf.serving.settings import ServerSettings

__all__ = ["serve"]

logger = logging.getLogger("xrlhf")

_POLL_SECONDS = 0.05
_AFTER_DRAINING = 5
"""Seconds for what is still open when the time for draining is over."""


class _Server(uvicorn.Server):
    """uvicorn's server, but for what a signal does: new requests are refused, and what runs is finished first.

    Args:
        config: uvicorn's own.
        service: What is drained.
    """

    def __init__(self, config: uvicorn.Config, service: RewardService) -> None:
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs; unlike uvicorn's own, the process then ends with status 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
        self._service.draining = True

    async def drain(self, seconds: float) -> None:
        """Wait until the server is told to end and then until nothing runs, at most ``seconds`` longer; end it."""
        while not self._service.draining and not self.should_exit:
            await asyncio.sleep(_POLL_SECONDS)
        loop = asyncio.get_running_loop()
        latest = loop.time() + seconds
        while self._service.num_running and loop.time() < latest and not self.should_exit:
            await asyncio.sleep(_POLL_SECONDS)
        if self._service.num_running:
            logger.warning("%d requests were still running when the server ended", self._service.num_running)
        self.should_exit = True


def serve(
    settings: ServerSettings,
    listening: socket.socket,
    ready: Callable[[], None],
    *,
    worker: int = 0,
) -> None:
    """Serve until a signal comes.

    Args:
        settings: The server.
        listening: The socket it accepts connections from.
        ready: Called once, when the model is loaded.
        worker: Number of this process among those that share the socket.

    Raises:
        UserError: The model cannot be loaded, or the device not used.
    """
    service = RewardService(settings.limits, Metrics())
    config = uvicorn.Config(
        build_app(service, api_key=settings.api_key),
        lifespan="off",
        log_config=None,
        # Whoever sends what is no HTTP is told so; it is no news for the server's log.
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_AFTER_DRAINING,
    )
    server = _Server(config, service)
    failure: list[BaseException] = []

    def load() -> None:
        try:
            service.attach(ServedModel.load(settings.model, worker=worker))
        except BaseException as error:
            failure.append(error)
            server.should_exit = True
        else:
            if not service.draining:
                ready()

    async def run() -> None:
        draining = asyncio.create_task(server.drain(settings.limits.drain_seconds))
        loading = threading.Thread(target=load, name="xrlhf-loading", daemon=True)
        loading.start()
        await server.serve(sockets=[listening])
        draining.cancel()

    try:
        asyncio.run(run())
    finally:
        service.close(timeout=_AFTER_DRAINING)
    if failure:
        raise failure[0]
