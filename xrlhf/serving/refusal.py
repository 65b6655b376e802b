"""Why a request gets no scores: one error for all protocols, each of which writes it in its own shape."""

from __future__ import annotations

from enum import Enum

__all__ = ["Refusal", "RefusalKind"]


class RefusalKind(Enum):
    """The kinds of refusal; the value is the HTTP status that protocols use unless they have one of their own."""

    INVALID = 422
    EMPTY = (422, "empty")
    TOO_LONG = (422, "too long")
    TOO_MANY_INPUTS = (422, "too many inputs")
    UNAUTHORISED = 401
    NOT_FOUND = 404
    METHOD = 405
    SLOW_BODY = 408
    BODY_TOO_LARGE = 413
    OVERLOADED = 429
    CLIENT_GONE = 499
    NOT_FINITE = (500, "not finite")
    FAILED = 500
    NOT_READY = 503

    @property
    def status(self) -> int:
        """The usual HTTP status."""
        return self.value if isinstance(self.value, int) else self.value[0]


class Refusal(Exception):
    """A request cannot be answered with scores.

    Args:
        kind: What is the matter.
        message: One line for the client, without any text of its request.
        param: The field of the request that it is about.
        status: The HTTP status, where it is not that of the kind.
        headers: More headers of the answer.
    """

    def __init__(
        self,
        kind: RefusalKind,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.status = status
        self.headers = headers or {}
