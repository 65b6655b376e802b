"""Asking a server for scores from Python, with retries: :class:`Client`, and :class:`AsyncClient` for asyncio."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Literal

from xrlhf.errors import ConfigError, MissingExtraError, RewardError, error_line

__all__ = ["AsyncClient", "Client", "Rewards", "ServerRefused"]

_TRY_AGAIN = (408, 429, 502, 503, 504)
_LONGEST_PAUSE = 30.0

RewardRow = Mapping[str, Any]
"""One input: ``messages``; ``prompt`` and ``response``; ``prompt`` and ``responses``; or ``text``."""


class ServerRefused(RewardError):
    """The server answers, but not with scores.

    Args:
        message: One line.
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Rewards:
    """What the server says of one input.

    Args:
        scores: The score of each of its answers, in order.
        num_tokens: Tokens of each conversation as it was scored.
        truncated: Whether each was cut.
    """

    scores: list[float]
    num_tokens: list[int]
    truncated: list[bool]


class _Asking:
    """What both clients do: what is asked, what comes of it, and when to try again."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout: float = 120.0, retries: int = 5, **options: Any
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no address of a server: expected http://HOST:PORT or https://...")
        self._httpx = _import_httpx()
        self._url = url.rstrip("/")
        self._retries = retries
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._options = {"headers": headers, "timeout": timeout, **options}

    def _body(self, inputs: Sequence[RewardRow], truncation: Literal["prompt", "end"] | None) -> dict[str, Any]:
        return {"inputs": [dict(row) for row in inputs], "truncation": truncation}

    def _rewards(self, answer: Any, count: int) -> list[Rewards]:
        try:
            found = [Rewards(item["scores"], item["num_tokens"], item["truncated"]) for item in answer["results"]]
        except (KeyError, TypeError) as error:
            raise RewardError(f"{self._url} does not answer as a reward server does: {error!r} is missing") from error
        if len(found) != count:
            raise RewardError(f"{self._url} gave {len(found)} results for {count} inputs")
        return found

    def _json(self, response: Any) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise RewardError(f"{self._url} does not answer as a reward server does: no JSON") from error

    def _pause(self, attempt: int, failure: Any) -> float:
        """Seconds to wait before another try; raises where there is none, or where it is of no use.

        Args:
            attempt: Tries so far.
            failure: An answer that is no success, or what kept the request from one.
        """
        refused = None if isinstance(failure, Exception) else self._refused(failure)
        if refused is not None and refused.status not in _TRY_AGAIN:
            raise refused
        if attempt > self._retries:
            if refused is not None:
                raise refused
            raise RewardError(
                f"no answer from {self._url} after {attempt} tries: {type(failure).__name__}: {error_line(failure)}"
            ) from failure
        asked = "" if refused is None else failure.headers.get("retry-after", "")
        if asked.isdigit():
            return min(_LONGEST_PAUSE, float(asked)) * (1 + random.random() / 4)
        return min(_LONGEST_PAUSE, 0.2 * 2 ** (attempt - 1)) * (0.5 + random.random() / 2)

    def _refused(self, response: Any) -> ServerRefused:
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = error_line(ValueError(response.text))
        return ServerRefused(f"{self._url} answers {response.status_code}: {message}", response.status_code)


class Client(_Asking):
    """Asks a server for scores.

    ::

        with Client("http://127.0.0.1:8000") as client:
            (reward,) = client.rewards([{"prompt": "What is 2 + 2?", "responses": ["4", "5"]}])
            print(reward.scores)

    Args:
        url: Where the server is.
        api_key: The key that it wants, if any.
        timeout: Seconds that one try may take.
        retries: How often a request is sent again after a failed connection, or where the server is full or loading;
            the server says how long to wait, else the pauses grow.
        **options: More for ``httpx.Client``.

    Raises:
        MissingExtraError: httpx is not installed.
        ConfigError: ``url`` is none.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout: float = 120.0, retries: int = 5, **options: Any
    ) -> None:
        super().__init__(url, api_key=api_key, timeout=timeout, retries=retries, **options)
        self._client = self._httpx.Client(**self._options)

    def rewards(
        self, inputs: Sequence[RewardRow], *, truncation: Literal["prompt", "end"] | None = None
    ) -> list[Rewards]:
        """Raw scores, in the order of the inputs.

        Args:
            inputs: Each ``{"messages": ...}``, ``{"prompt": ..., "response": ...}``,
                ``{"prompt": ..., "responses": [...]}`` or ``{"text": ...}``.
            truncation: Cut conversations that are too long at the prompt's beginning or at the end; None refuses them.

        Raises:
            ServerRefused: The server says that the request is wrong, or refuses it after all tries.
            RewardError: No answer after all tries.
        """
        if not inputs:
            return []
        return self._rewards(self._send("POST", "/v1/rewards", self._body(inputs, truncation)), len(inputs))

    def info(self) -> dict[str, Any]:
        """What the server says of its model and limits."""
        answer: dict[str, Any] = self._send("GET", "/info", None)
        return answer

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        attempt = 0
        while True:
            attempt += 1
            try:
                response = self._client.request(method, self._url + path, json=body)
            except self._httpx.TransportError as error:
                time.sleep(self._pause(attempt, error))
                continue
            if response.is_success:
                return self._json(response)
            time.sleep(self._pause(attempt, response))


class AsyncClient(_Asking):
    """As :class:`Client`, for asyncio.

    Args:
        url: As for :class:`Client`.
        api_key: As for :class:`Client`.
        timeout: As for :class:`Client`.
        retries: As for :class:`Client`.
        **options: More for ``httpx.AsyncClient``.

    Raises:
        MissingExtraError: httpx is not installed.
        ConfigError: ``url`` is none.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout: float = 120.0, retries: int = 5, **options: Any
    ) -> None:
        super().__init__(url, api_key=api_key, timeout=timeout, retries=retries, **options)
        self._client = self._httpx.AsyncClient(**self._options)

    async def rewards(
        self, inputs: Sequence[RewardRow], *, truncation: Literal["prompt", "end"] | None = None
    ) -> list[Rewards]:
        """As :meth:`Client.rewards`."""
        if not inputs:
            return []
        answer = await self._send("POST", "/v1/rewards", self._body(inputs, truncation))
        return self._rewards(answer, len(inputs))

    async def info(self) -> dict[str, Any]:
        """As :meth:`Client.info`."""
        answer: dict[str, Any] = await self._send("GET", "/info", None)
        return answer

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        attempt = 0
        while True:
            attempt += 1
            try:
                response = await self._client.request(method, self._url + path, json=body)
            except self._httpx.TransportError as error:
                await asyncio.sleep(self._pause(attempt, error))
                continue
            if response.is_success:
                return self._json(response)
            await asyncio.sleep(self._pause(attempt, response))


def _import_httpx() -> ModuleType:
    try:
        import httpx
    except ImportError as error:
        raise MissingExtraError(
            "asking a server needs httpx, which is not installed: pip install 'xrlhf[serve]'"
        ) from error
    return httpx
