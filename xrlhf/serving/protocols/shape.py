"""What makes a protocol: its routes, the bodies they take, and how it says that something went wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, WithJsonSchema

from xrlhf.data.map_fns.messages import check_messages
from xrlhf.data.reasons import RowError
from xrlhf.serving.activation import Activation
from xrlhf.serving.inputs import Cut, ScoringInput
from xrlhf.serving.model import ServedModel
from xrlhf.serving.refusal import Refusal, RefusalKind
from xrlhf.serving.service import Receive, RewardService, ScoredInputs
from xrlhf.structures import Message

__all__ = ["Body", "Call", "ChatMessage", "Endpoint", "ErrorShape", "chat", "openai_error", "simple_error"]


class Body(BaseModel):
    """A request's body; keys that are not known are ignored, as the peers' own servers do."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


ChatMessage = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "role": {"type": "string", "enum": ["system", "user", "assistant", "tool"]},
                "content": {"type": "string"},
            },
            "required": ["role", "content"],
            "additionalProperties": True,
        }
    ),
]
"""A chat message; what else it may hold is checked by the code that reads data files."""


class Call:
    """What a handler may ask for while it answers one request.

    Args:
        service: Scores.
        receive: The request's channel.
        request_id: Its id.
    """

    def __init__(self, service: RewardService, receive: Receive, request_id: str) -> None:
        self._service = service
        self._receive = receive
        self.request_id = request_id
        self.headers: dict[str, str] = {}

    @property
    def model(self) -> ServedModel:
        """The model; refuses the request where it is not there yet."""
        return self._service.model

    async def score(self, inputs: list[ScoringInput], cut: Cut | None = None) -> ScoredInputs:
        """Scores of all inputs, as :meth:`RewardService.score` gives them."""
        scored = await self._service.score(inputs, cut, receive=self._receive)
        self.headers |= scored.headers()
        return scored


@dataclass(frozen=True)
class ErrorShape:
    """How a protocol says that something went wrong.

    Args:
        body: What it writes for a refusal and its HTTP status.
        statuses: Its HTTP statuses, where they are others than usual.
    """

    body: Callable[[Refusal, int], dict[str, Any]]
    statuses: Mapping[RefusalKind, int] = field(default_factory=dict)

    def status(self, refusal: Refusal) -> int:
        """The HTTP status of a refusal."""
        return refusal.status or self.statuses.get(refusal.kind, refusal.kind.status)


@dataclass(frozen=True)
class Endpoint:
    """One protocol's use of a route.

    Args:
        body: What it takes.
        handle: Answers it.
        errors: How it says that something went wrong.
        answer: What it gives, for the OpenAPI description.
        activation: What it does to a score where a request says nothing; None for what the model's config asks for.
        key: The key that tells its bodies from those of another protocol on the same route.
    """

    body: type[Body]
    handle: Callable[[Any, Call], Awaitable[Any]]
    errors: ErrorShape
    answer: Any
    activation: Activation | None = "none"
    key: str = ""


def chat(messages: list[dict[str, Any]], where: str = "messages") -> list[Message]:
    """Messages in canonical form.

    Raises:
        Refusal: They are none.
    """
    try:
        return check_messages(messages, where)
    except RowError as error:
        raise Refusal(RefusalKind.INVALID, error.detail, param=where) from error


_TYPES = {
    RefusalKind.UNAUTHORISED: "AuthenticationError",
    RefusalKind.NOT_FOUND: "NotFoundError",
    RefusalKind.OVERLOADED: "RateLimitError",
    RefusalKind.NOT_READY: "ServiceUnavailableError",
    RefusalKind.NOT_FINITE: "InternalServerError",
    RefusalKind.FAILED: "InternalServerError",
}


def openai_error(refusal: Refusal, status: int) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``, the shape that OpenAI's clients read."""
    return {
        "error": {
            "message": refusal.message,
            "type": _TYPES.get(refusal.kind, "BadRequestError"),
            "param": refusal.param,
            "code": status,
        }
    }


def simple_error(refusal: Refusal, status: int) -> dict[str, Any]:
    """``{"detail": ...}``, what FastAPI itself writes."""
    return {"detail": refusal.message}
