"""Hugging Face's text-embeddings-inference: ``POST /predict`` and ``POST /rerank`` (text-embeddings-inference,
router/src/http/types.rs).

What it calls a pair is a question and an answer to a reward model, so pairs go through the chat template.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from xrlhf.serving.activation import Activation, activated
from xrlhf.serving.inputs import Cut, RawText, ScoringInput, question_and_answers
from xrlhf.serving.protocols.shape import Body, Call, Endpoint, ErrorShape
from xrlhf.serving.refusal import Refusal, RefusalKind

__all__ = ["PREDICT", "RERANK"]


class _Options(Body):
    truncate: bool | None = Field(None, description="Cut texts that are too long; null and false refuse them.")
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    raw_scores: bool = Field(False, description="Raw scores in place of a sigmoid's.")

    @property
    def cut(self) -> Cut | None:
        if not self.truncate:
            return None
        return Cut("left" if self.truncation_direction.lower() == "left" else "right")

    @property
    def activation(self) -> Activation:
        return "none" if self.raw_scores else "sigmoid"


class Predict(_Options):
    """A text, a pair of texts, or a list of texts and pairs, each in a list of its own."""

    inputs: str | list[str] | list[list[str]]


class Rerank(_Options):
    """A question and answers to it."""

    query: str
    texts: list[str]
    return_text: bool = False


class Prediction(BaseModel):
    """A score and what it is called."""

    score: float
    label: str


class Rank(BaseModel):
    """The place of a text in the request, and its score."""

    index: int
    score: float
    text: str | None = None


def _input(texts: list[str], call: Call) -> ScoringInput:
    if len(texts) == 1:
        return RawText(texts[0], add_special_tokens=True)
    if len(texts) == 2:
        return question_and_answers(texts[0], texts[1:], has_template=call.model.has_template)
    raise Refusal(
        RefusalKind.INVALID, f"an input has {len(texts)} texts; expected one, or two for a pair", param="inputs"
    )


async def predict(body: Predict, call: Call) -> list[Any]:
    """The score of each text or pair: a sigmoid unless ``raw_scores`` is true. A flat list of two texts is one pair."""
    given = body.inputs
    single = isinstance(given, str) or (len(given) > 0 and isinstance(given[0], str))
    if isinstance(given, str):
        batch = [[given]]
    elif single:
        batch = [[str(text) for text in given]]
    else:
        batch = [list(texts) for texts in given]
    scored = await call.score([_input(texts, call) for texts in batch], body.cut)
    answers = [[{"score": activated(row[0], body.activation), "label": call.model.label}] for row in scored.scores]
    return answers[0] if single else answers


async def rerank(body: Rerank, call: Call) -> list[dict[str, Any]]:
    """The answers to a question, best first: a sigmoid of each score unless ``raw_scores`` is true."""
    if not body.texts:
        raise Refusal(RefusalKind.EMPTY, "`texts` cannot be empty", param="texts")
    group = question_and_answers(body.query, body.texts, has_template=call.model.has_template)
    (scores,) = (await call.score([group], body.cut)).scores
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [
        {"index": index, "score": activated(scores[index], body.activation)}
        | ({"text": body.texts[index]} if body.return_text else {})
        for index in order
    ]


_ERROR_TYPES = {
    RefusalKind.UNAUTHORISED: "Unauthorized",
    RefusalKind.EMPTY: "Empty",
    RefusalKind.OVERLOADED: "Overloaded",
    RefusalKind.NOT_READY: "Unhealthy",
    RefusalKind.NOT_FINITE: "Backend",
    RefusalKind.FAILED: "Backend",
}


def tei_error(refusal: Refusal, status: int) -> dict[str, Any]:
    """``{"error", "error_type"}``."""
    return {"error": refusal.message, "error_type": _ERROR_TYPES.get(refusal.kind, "Validation")}


_ERRORS = ErrorShape(tei_error, {RefusalKind.EMPTY: 400, RefusalKind.NOT_FINITE: 424, RefusalKind.FAILED: 424})

PREDICT = Endpoint(Predict, predict, _ERRORS, list[Prediction] | list[list[Prediction]], "sigmoid")
RERANK = Endpoint(Rerank, rerank, _ERRORS, list[Rank], "sigmoid", key="texts")
