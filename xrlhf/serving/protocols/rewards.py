"""The project's own protocol: ``POST /v1/rewards`` takes conversations and gives scores, token counts and timings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from xrlhf.data.reasons import RowError
from xrlhf.evaluation.rows import scorable_group
from xrlhf.serving.activation import Activation, activated
from xrlhf.serving.inputs import Cut, ScoringInput, check_template_options
from xrlhf.serving.protocols.shape import Body, Call, ChatMessage, Endpoint, ErrorShape, openai_error
from xrlhf.serving.refusal import Refusal, RefusalKind
from xrlhf.structures import Group

__all__ = ["REWARDS"]

Turns = str | ChatMessage | list[ChatMessage]


class RewardInput(BaseModel):
    """One prompt with its answers, in a layout that ``xrlhf score`` reads: ``messages``; ``prompt`` and ``response``;
    ``prompt`` and ``responses``; or ``text``, which is scored as it stands.
    """

    model_config = ConfigDict(extra="forbid")

    messages: list[ChatMessage] | None = Field(None, description="A conversation that ends with an answer.")
    prompt: Turns | None = Field(None, description="A text for one user message, or messages.")
    response: Turns | None = Field(None, description="A text for one assistant message, or messages.")
    responses: list[Turns] | None = Field(None, description="Several answers to the prompt.")
    text: str | None = Field(None, description="A text without roles.")
    tools: list[dict[str, Any]] | None = Field(None, description="For the chat template.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="For the chat template.")

    def group(self, place: str) -> Group:
        """The conversations.

        Raises:
            Refusal: No such layout, or a column holds something else.
        """
        row = {name: getattr(self, name) for name in ("messages", "prompt", "response", "responses", "text")}
        row = {name: value for name, value in row.items() if value is not None}
        try:
            group = scorable_group(row)
        except RowError as error:
            raise Refusal(RefusalKind.INVALID, f"{place}: {error.detail}", param=place) from error
        options = check_template_options(self.chat_template_kwargs)
        return Group(group.prompt, group.responses, meta={"chat_template_kwargs": options, "tools": self.tools})


class Rewards(Body):
    """What to score."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    inputs: list[RewardInput] = Field(min_length=1)
    truncation: Literal["prompt", "end"] | None = Field(
        None, description="Cut conversations that are too long, at the prompt's beginning or at the end; null refuses."
    )
    activation: Activation = Field("none", description="A sigmoid of each score in place of the raw one.")
    model: str | None = Field(None, description="Not read: a server has one model.")


class RewardResult(BaseModel):
    """An input's scores, in the order of its answers."""

    scores: list[float]
    num_tokens: list[int] = Field(description="Tokens of each conversation as it was scored.")
    truncated: list[bool] = Field(description="Whether each was cut.")


class RewardUsage(BaseModel):
    """Counts over the request."""

    num_conversations: int
    num_tokens: int


class RewardTimings(BaseModel):
    """Where the time went, in milliseconds."""

    tokenise_ms: float
    queue_ms: float
    compute_ms: float
    total_ms: float


class RewardAnswer(BaseModel):
    """Results in the order of the inputs."""

    id: str
    object: str
    model: str
    activation: Activation
    results: list[RewardResult]
    usage: RewardUsage
    timings: RewardTimings


async def rewards(body: Rewards, call: Call) -> dict[str, Any]:
    """Scores of conversations: raw, unless ``activation`` says otherwise."""
    inputs: list[ScoringInput] = [item.group(f"inputs[{number}]") for number, item in enumerate(body.inputs)]
    scored = await call.score(inputs, None if body.truncation is None else Cut(body.truncation))
    times = scored.timings
    return {
        "id": f"rewards-{call.request_id}",
        "object": "rewards",
        "model": call.model.name,
        "activation": body.activation,
        "results": [
            {
                "scores": [activated(score, body.activation) for score in scores],
                "num_tokens": lengths,
                "truncated": truncated,
            }
            for scores, lengths, truncated in zip(scored.scores, scored.num_tokens, scored.truncated, strict=True)
        ],
        "usage": {
            "num_conversations": sum(map(len, scored.scores)),
            "num_tokens": scored.total_tokens,
        },
        "timings": {
            "tokenise_ms": 1000 * times.tokenise,
            "queue_ms": 1000 * times.queue,
            "compute_ms": 1000 * times.compute,
            "total_ms": 1000 * times.total,
        },
    }


REWARDS = Endpoint(Rewards, rewards, ErrorShape(openai_error), RewardAnswer)
