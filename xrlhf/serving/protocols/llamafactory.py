"""LLaMA-Factory's score server: ``POST /v1/score/evaluation`` (LLaMA-Factory, src/llamafactory/api/app.py)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from xrlhf.serving.inputs import Cut, RawText
from xrlhf.serving.protocols.shape import Body, Call, Endpoint, ErrorShape, simple_error
from xrlhf.serving.refusal import Refusal, RefusalKind

__all__ = ["SCORE_EVALUATION"]


class ScoreEvaluation(Body):
    """Texts whose chat template is already rendered; they are called messages but are none."""

    model: str | None = None
    messages: list[str]
    max_length: int | None = Field(None, ge=1, description="Cut the end of longer texts; null refuses them.")


class ScoreEvaluationAnswer(BaseModel):
    """Raw scores, in the order of the texts."""

    id: str
    object: str
    model: str
    scores: list[float]


async def score_evaluation(body: ScoreEvaluation, call: Call) -> dict[str, Any]:
    """Raw scores of whole texts."""
    if not body.messages:
        raise Refusal(RefusalKind.EMPTY, "Invalid request")
    cut = None if body.max_length is None else Cut("right", body.max_length)
    scored = await call.score([RawText(text) for text in body.messages], cut)
    return {
        "id": f"scoreval-{call.request_id}",
        "object": "score.evaluation",
        "model": body.model or call.model.name,
        "scores": [row[0] for row in scored.scores],
    }


SCORE_EVALUATION = Endpoint(
    ScoreEvaluation,
    score_evaluation,
    ErrorShape(simple_error, {RefusalKind.EMPTY: 400, RefusalKind.TOO_LONG: 400, RefusalKind.INVALID: 400}),
    ScoreEvaluationAnswer,
)
