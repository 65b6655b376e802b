"""Puts tiny_models on the path of this folder's tests; prompts and answers by hand; a real HTTP server."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xrlhf.rl.samples import PromptRow, Sample
from xrlhf.structures import Conversation, as_ids

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Reply:
    """What a server gives: a status, a body (an object becomes JSON), headers, and how long it takes over it."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    hang_up: bool = False


@dataclass
class Asked:
    """A request that came in."""

    path: str
    body: Any
    headers: Mapping[str, str]


class HttpServer:
    """A server in a thread: every request is answered by ``answer``, and kept in ``requests``."""

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self.requests: list[Asked] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked = Asked(self.path, json.loads(data) if data else None, dict(self.headers))
                outer.requests.append(asked)
                reply = answer(asked)
                time.sleep(reply.delay)
                if reply.hang_up:
                    self.connection.close()
                    return
                body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                try:
                    self.send_response(reply.status)
                    for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    # The client did not wait.
                    return

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        """No request is answered any more: connections are refused."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Asked], Reply]], HttpServer]]:
    """Starts servers that end with the test."""
    servers: list[HttpServer] = []

    def start(answer: Callable[[Asked], Reply]) -> HttpServer:
        servers.append(HttpServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def reply() -> type[Reply]:
    return Reply


@pytest.fixture
def prompt_row() -> Callable[..., PromptRow]:
    """A prompt, a question or whole messages, with columns."""

    def make(prompt: Conversation = "Q", index: int = 0, *, text: bool = False, **meta: Any) -> PromptRow:
        if isinstance(prompt, str) and not text:
            prompt = [{"role": "user", "content": prompt}]
        return PromptRow(prompt, as_ids([1, 2, 3]), index, meta)

    return make


@pytest.fixture
def drawn() -> Callable[..., list[Sample]]:
    """Answers with given texts."""

    def make(*texts: str, ending: Any = "stop") -> list[Sample]:
        return [Sample(as_ids([len(text), 2]), np.zeros(2, np.float32), text, ending) for text in texts]

    return make


@pytest.fixture
def flat() -> Callable[[Sequence[Sequence[Any]]], list[Any]]:
    return lambda nested: [item for inner in nested for item in inner]
