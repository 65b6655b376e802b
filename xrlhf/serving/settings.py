"""What a server is told: where it listens, what it scores with, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from xrlhf.errors import ConfigError

__all__ = ["Limits", "ModelSettings", "ServerSettings"]


@dataclass(frozen=True)
class Limits:
    """What a server refuses, and how.

    Args:
        max_queue: Conversations that may be in the server at once, from their tokenisation to their score; more are
            refused until some are done.
        max_inputs: Conversations of one request, at most ``max_queue``.
        max_body: Bytes of one request's body.
        body_seconds: Seconds that a client may take to send its body.
        overload_status: 429, or 503 for clients that give up at any 4xx.
        retry_after: Seconds after which a refused client is asked to come back.
        drain_seconds: Seconds that running requests may take to finish once the server is told to stop.

    Raises:
        ConfigError: A limit that nothing could meet.
    """

    max_queue: int = 4096
    max_inputs: int = 1024
    max_body: int = 4_000_000
    body_seconds: float = 30.0
    overload_status: Literal[429, 503] = 429
    retry_after: int = 1
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_queue", "max_inputs", "max_body"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{_option(name)} must be at least 1, got {getattr(self, name)}")
        if self.max_inputs > self.max_queue:
            raise ConfigError(
                f"--max-inputs {self.max_inputs} is more than --max-queue {self.max_queue}: such a request could "
                "never be let in"
            )
        if self.overload_status not in (429, 503):
            raise ConfigError(f"--overload-status must be 429 or 503, got {self.overload_status}")
        if self.drain_seconds < 0:
            raise ConfigError(f"--drain-seconds must not be negative, got {self.drain_seconds:g}")


@dataclass(frozen=True)
class ModelSettings:
    """What is served, and how it computes.

    Args:
        path: A reward model: a directory or a hub name.
        device: Name of the device; the first that is there if None.
        dtype: Type the weights are held in.
        max_length: Most tokens of a conversation; the model's own limit if None.
        token_budget: Most tokens of one forward pass, unless a single conversation is longer.
        name: What answers call the model; the last part of ``path`` if None, so that no answer shows a local path.
    """

    path: str
    device: str | None = None
    dtype: str = "float32"
    max_length: int | None = None
    token_budget: int = 16384
    name: str | None = None

    def __post_init__(self) -> None:
        if self.token_budget < 1:
            raise ConfigError(f"--token-budget must be at least 1, got {self.token_budget}")

    @property
    def served_name(self) -> str:
        """What answers call the model."""
        return self.name or self.path.rstrip("/").rsplit("/", 1)[-1] or self.path


@dataclass(frozen=True)
class ServerSettings:
    """A whole server.

    Args:
        model: What is served.
        host: Name or address of the interface; only this machine reaches the default.
        port: Port; 0 for any that is free.
        api_key: What clients have to send as ``Authorization: Bearer KEY``; None for a server open to all who reach it.
        workers: Processes that share the port, each with a model of its own.
        limits: What is refused.
    """

    model: ModelSettings
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    workers: int = 1
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must be from 0 to 65535, got {self.port}")
        if self.workers < 1:
            raise ConfigError(f"--workers must be at least 1, got {self.workers}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
