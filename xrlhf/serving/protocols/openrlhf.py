"""OpenRLHF's remote reward model: ``POST /get_reward`` (OpenRLHF, openrlhf/cli/serve_rm.py)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from xrlhf.serving.inputs import RawText
from xrlhf.serving.protocols.shape import Body, Call, Endpoint, ErrorShape, simple_error

__all__ = ["GET_REWARD"]


class GetReward(Body):
    """Decoded tokens, special ones kept, are scored as they stand; ``prompts`` and ``labels`` are not read."""

    query: list[str] = Field(description="Prompt and response as one text, the chat template already rendered.")


class ExtraLogs(BaseModel):
    """What OpenRLHF logs beside the rewards."""

    dummy_scores: list[float]


class Rewards(BaseModel):
    """Raw scores, in the order of the queries."""

    rewards: list[float]
    scores: list[float]
    extra_logs: ExtraLogs


async def get_reward(body: GetReward, call: Call) -> dict[str, Any]:
    """Raw rewards of whole texts. An empty list gets empty lists: clients with several servers send them."""
    scores: list[float] = []
    if body.query:
        scored = await call.score([RawText(text) for text in body.query])
        scores = [row[0] for row in scored.scores]
    return {"rewards": scores, "scores": scores, "extra_logs": {"dummy_scores": scores}}


GET_REWARD = Endpoint(GetReward, get_reward, ErrorShape(simple_error), Rewards)
