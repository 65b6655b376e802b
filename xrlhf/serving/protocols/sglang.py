"""SGLang's native ``POST /classify`` and its ``POST /v1/embeddings`` for reward models (SGLang,
docs/basic_usage/native_api.ipynb). Its ``/v1/classify`` has vLLM's body.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from xrlhf.serving.inputs import RawText, ScoringInput
from xrlhf.serving.protocols.shape import Body, Call, Endpoint, ErrorShape, openai_error
from xrlhf.serving.refusal import RefusalKind
from xrlhf.serving.service import ScoredInputs

__all__ = ["CLASSIFY", "EMBEDDINGS"]


class Classify(Body):
    """Texts whose chat template is already rendered."""

    text: str | list[str]


class Embeddings(Body):
    """Texts whose chat template is already rendered."""

    model: str | None = None
    input: str | list[str]


class MetaInfo(BaseModel):
    """What is known of a text beside its score."""

    id: str
    prompt_tokens: int


class Embedding(BaseModel):
    """A raw score, as an embedding of one number."""

    embedding: list[float]
    meta_info: MetaInfo


class EmbeddingData(BaseModel):
    """A raw score, as an embedding of one number."""

    object: str
    embedding: list[float]
    index: int


class EmbeddingsUsage(BaseModel):
    """Tokens of the request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """Raw scores in the order of the texts."""

    object: str
    model: str
    data: list[EmbeddingData]
    usage: EmbeddingsUsage


async def _score(given: str | list[str], call: Call) -> ScoredInputs:
    inputs: list[ScoringInput] = [RawText(text) for text in ([given] if isinstance(given, str) else given)]
    return await call.score(inputs)


async def classify(body: Classify, call: Call) -> Any:
    """Raw scores of whole texts: an object for one text, a list of them for a list."""
    scored = await _score(body.text, call)
    answers = [
        {"embedding": [row[0]], "meta_info": {"id": f"{call.request_id}-{index}", "prompt_tokens": lengths[0]}}
        for index, (row, lengths) in enumerate(zip(scored.scores, scored.num_tokens, strict=True))
    ]
    return answers[0] if isinstance(body.text, str) else answers


async def embeddings(body: Embeddings, call: Call) -> dict[str, Any]:
    """Raw scores of whole texts, each as an embedding of one number."""
    scored = await _score(body.input, call)
    return {
        "object": "list",
        "model": body.model or call.model.name,
        "data": [
            {"object": "embedding", "embedding": [row[0]], "index": index} for index, row in enumerate(scored.scores)
        ],
        "usage": {"prompt_tokens": scored.total_tokens, "total_tokens": scored.total_tokens},
    }


_ERRORS = ErrorShape(
    openai_error,
    dict.fromkeys((RefusalKind.INVALID, RefusalKind.EMPTY, RefusalKind.TOO_LONG, RefusalKind.TOO_MANY_INPUTS), 400),
)

CLASSIFY = Endpoint(Classify, classify, _ERRORS, Embedding | list[Embedding], key="text")
EMBEDDINGS = Endpoint(Embeddings, embeddings, _ERRORS, EmbeddingsAnswer)
