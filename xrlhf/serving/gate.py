"""What every request passes: its id, the key, the limits on its body, and the count of what became of it."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from xrlhf.serving.metrics import Metrics
from xrlhf.serving.protocols import ROUTES, error_shape
from xrlhf.serving.refusal import Refusal, RefusalKind
from xrlhf.serving.settings import Limits

__all__ = ["OPEN_ROUTES", "Gate"]

logger = logging.getLogger("xrlhf")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_ROUTES = ("/", "/health", "/ready")
"""Routes that need no key: they tell nothing but that the server is there. The page asks for a key itself."""

_KNOWN = {*ROUTES, *OPEN_ROUTES, "/info", "/metrics", "/openapi.json"}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class _Gone(Exception):
    """The client left while it was sending."""


class Gate:
    """An application around another one.

    Args:
        app: The application.
        limits: What is refused.
        metrics: What counts.
        api_key: What has to stand behind ``Authorization: Bearer``; None for no key.
    """

    def __init__(self, app: Application, limits: Limits, metrics: Metrics, api_key: str | None) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._api_key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = {name.lower(): value for name, value in scope["headers"]}
        request_id = _request_id(headers.get(b"x-request-id", b""))
        scope.setdefault("state", {})["request_id"] = request_id
        path = scope["path"]
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._check_key(path, headers.get(b"authorization", b""))
            body = await self._read(headers, receive) if scope["method"] == "POST" else b""
            await self._app(scope, _replay(body, receive), answer)
        except Refusal as refusal:
            await _refuse(refusal, path, answer)
        except _Gone:
            status = RefusalKind.CLIENT_GONE.status
        except Exception as error:
            # Neither the message nor the arguments of an unknown error: they might hold what a client sent.
            where = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
            logger.error("request %s failed: %s\n%s", request_id, type(error).__name__, where.rstrip())
            if not status:
                await _refuse(Refusal(RefusalKind.FAILED, "internal error"), path, answer)
        finally:
            route = path if path in _KNOWN else "other"
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - began)

    def _check_key(self, path: str, header: bytes) -> None:
        if self._api_key is None or path in OPEN_ROUTES:
            return
        scheme, _, given = header.partition(b" ")
        # Compared also where the scheme is wrong, so that the time it takes says nothing.
        right = hmac.compare_digest(given.strip(), self._api_key)
        if not (right and scheme.lower() == b"bearer"):
            raise Refusal(
                RefusalKind.UNAUTHORISED,
                "a valid key is needed: send it as 'Authorization: Bearer KEY'",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The body, unless it is too large, or takes too long to come."""
        limit = self._limits.max_body
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        try:
            return await asyncio.wait_for(_collect(receive, limit), self._limits.body_seconds)
        except (TimeoutError, asyncio.TimeoutError):
            raise Refusal(
                RefusalKind.SLOW_BODY, f"the body did not come within {self._limits.body_seconds:g} s"
            ) from None


async def _collect(receive: Receive, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


def _too_large(limit: int) -> Refusal:
    return Refusal(
        RefusalKind.BODY_TOO_LARGE, f"the body is larger than {limit} bytes", headers={"Connection": "close"}
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """A channel that gives the body once, then what comes from the client after it."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _request_id(given: bytes) -> str:
    text = given.decode("latin-1")
    return text if _REQUEST_ID.fullmatch(text) else uuid.uuid4().hex


async def _refuse(refusal: Refusal, path: str, send: Send) -> None:
    shape = error_shape(path)
    status = shape.status(refusal)
    headers = {"content-type": "application/json", **refusal.headers}
    body = json.dumps(shape.body(refusal, status)).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                *((name.lower().encode(), value.encode()) for name, value in headers.items()),
                (b"content-length", str(len(body)).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
