"""Questions to a server in JSON, asked again where that can help, given up in one clear line where it cannot."""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from http.client import HTTPException
from typing import Any

from xrlhf.errors import ConfigError, TrainingError, error_line

__all__ = ["JsonServer"]

_MAY_PASS = (408, 425, 429)
_LONGEST_WAIT = 30.0
_PIECE = 1 << 16
_SHOWN = 200


class _Passing(Exception):
    """What a later attempt may mend.

    Args:
        what: What happened.
        wait: Seconds that the server asks to be left alone for; 0 where it does not say.
    """

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


class JsonServer:
    """A server that takes and gives JSON.

    Python's own HTTP client is enough for a few large requests, so that nothing has to be installed; proxies are taken
    from the environment, as ever.

    Args:
        url: Where it is, such as ``http://127.0.0.1:8000``; paths are put behind it.
        timeout: Seconds that one attempt may take in all, above 0.
        retries: Further attempts after the first, 0 or more, where the connection fails, the time is over, or the
            server says that it is busy or broken (408, 425, 429, 5xx). Nothing else is asked twice.
        backoff: Seconds before the second attempt; each further wait is twice as long, up to 30. A server's own
            ``Retry-After`` counts where it is longer, up to 30 as well.
        api_key_env: Name of an environment variable with a key, sent as a bearer token; None for none.
        error: The class that failures are raised as.
        sleep: Waits; for tests.

    Raises:
        ConfigError: ``url`` is no http or https address, a number lies outside its range, or the variable is not set.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 1.0,
        api_key_env: str | None = None,
        error: type[TrainingError] = TrainingError,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not isinstance(url, str) or not url.startswith(("http://", "https://")) or url.endswith("://"):
            raise ConfigError(f"url must begin with http:// or https://, got {url!r}")
        if not timeout > 0:
            raise ConfigError(f"{url}: timeout must be above 0 seconds, got {timeout:g}")
        if retries < 0:
            raise ConfigError(f"{url}: retries must be 0 or more, got {retries}")
        if not backoff >= 0:
            raise ConfigError(f"{url}: backoff must be 0 seconds or more, got {backoff:g}")
        if api_key_env is not None and not os.environ.get(api_key_env):
            raise ConfigError(
                f"{url}: the key is to come from the environment variable {api_key_env}, which is not set"
            )
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.retries = retries
        self.backoff = backoff
        self.api_key_env = api_key_env
        self._error = error
        self._sleep = sleep

    def tell(self, path: str, body: Any | None = None) -> None:
        """As :meth:`post`, for a request whose answer says nothing: it need not be JSON.

        Args:
            path: As there.
            body: As there.

        Raises:
            TrainingError: As there.
        """
        self._answer_to(self.url + path, body)

    def post(self, path: str, body: Any | None = None) -> Any:
        """What the server answers, read as JSON; None where the answer is empty.

        Args:
            path: Behind the address, with its slash; empty for the address itself.
            body: Sent as JSON; None for an empty request.

        Raises:
            TrainingError: Of the class given to the server: no attempt succeeded, the server refuses the request, or
                answers with something that is no JSON.
        """
        answer = self._answer_to(self.url + path, body)
        if not answer:
            return None
        try:
            return json.loads(answer)
        except ValueError as error:
            raise self._error(f"{self.url + path}: the answer is no JSON: {_shown(answer)}") from error

    def _answer_to(self, where: str, body: Any | None) -> bytes:
        data = b"" if body is None else json.dumps(body).encode()
        started = time.monotonic()
        for attempt in range(self.retries + 1):
            try:
                return self._attempt(where, data)
            except _Passing as obstacle:  # noqa: PERF203
                if attempt == self.retries:
                    tries = "1 attempt" if attempt == 0 else f"{attempt + 1} attempts"
                    raise self._error(
                        f"{where}: no answer in {tries} over {time.monotonic() - started:.0f} s; the last one: "
                        f"{obstacle}"
                    ) from obstacle
                self._sleep(min(max(self.backoff * 2**attempt, obstacle.wait), _LONGEST_WAIT))
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, where: str, data: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ.get(self.api_key_env, '')}"
        request = urllib.request.Request(where, data=data, headers=headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return self._read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                said = f"status {error.code} {error.reason}: {_shown(_excerpt(error))}"
            if error.code in _MAY_PASS or error.code >= 500:
                raise _Passing(said, _retry_after(error.headers)) from error
            raise self._error(f"{where}: the server refuses the request: {said}") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise self._error(f"{where}: {error_line(error.reason)}") from error
            if isinstance(error.reason, TimeoutError):
                raise _Passing(f"nothing came within {self.timeout:g} s") from error
            raise _Passing(error_line(error.reason if isinstance(error.reason, Exception) else error)) from error
        except TimeoutError as error:
            raise _Passing(f"nothing came within {self.timeout:g} s") from error
        except (HTTPException, OSError) as error:
            raise _Passing(f"{type(error).__name__}: {error_line(error)}") from error

    def _read(self, response: Any, deadline: float) -> bytes:
        """The whole answer; a server that sends a little now and then runs into the deadline too."""
        pieces = []
        while piece := response.read1(_PIECE):
            pieces.append(piece)
            if time.monotonic() > deadline:
                raise _Passing(f"the answer was not complete after {self.timeout:g} s")
        missing = getattr(response, "length", None)
        if missing:
            raise _Passing(f"the connection ended {missing} bytes before the answer did")
        return b"".join(pieces)


def _excerpt(error: urllib.error.HTTPError) -> bytes:
    try:
        return error.read(4 * _SHOWN)
    except (HTTPException, OSError):
        return b""


def _shown(answer: bytes) -> str:
    text = " ".join(answer.decode("utf-8", errors="replace").split())
    if not text:
        return "an empty answer"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _retry_after(headers: Message | None) -> float:
    """Seconds; a date, which is allowed too, counts as nothing said."""
    value = "" if headers is None else str(headers.get("Retry-After", ""))
    return float(value) if value and value.strip().isdecimal() else 0.0
