"""vLLM's pooling routes: ``POST /classify``, ``/pooling``, ``/score`` and ``/rerank`` (vLLM,
vllm/entrypoints/pooling/*/protocol.py).

Scores are what the model's config asks servers for: raw where ``problem_type`` is regression, as every export of xrlhf
says, else a sigmoid. ``use_activation`` in a request always wins. What ``/score`` calls a pair is a question and an
answer to a reward model, so pairs go through the chat template.
"""

from __future__ import annotations

import base64
import struct
import time
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field

from xrlhf.serving.activation import Activation, activated
from xrlhf.serving.inputs import Cut, RawIds, RawText, ScoringInput, check_template_options, question_and_answers
from xrlhf.serving.protocols.shape import Body, Call, ChatMessage, Endpoint, ErrorShape, chat, openai_error
from xrlhf.serving.refusal import Refusal, RefusalKind
from xrlhf.serving.service import ScoredInputs
from xrlhf.structures import Group

__all__ = ["CLASSIFY", "POOLING", "RERANK", "SCORE", "V1_CLASSIFY"]

TokenId = Annotated[int, Field(strict=True, ge=0)]
RawInput = str | list[str] | list[TokenId] | list[list[TokenId]]


class _Options(Body):
    model: str | None = None
    use_activation: bool | None = Field(None, description="A sigmoid or the raw score; null for the model's own rule.")
    activation: bool | None = Field(None, description="Earlier name of use_activation.", deprecated=True)
    softmax: bool | None = Field(None, description="Earliest name of use_activation.", deprecated=True)
    truncate_prompt_tokens: int | None = Field(None, ge=-1, description="Most tokens; -1 for the server's limit.")
    truncation_side: Literal["left", "right"] = Field("left", description="Which end is cut; right loses the answer's.")
    request_id: str | None = None
    user: str | None = None
    priority: int = 0

    @property
    def cut(self) -> Cut | None:
        limit = self.truncate_prompt_tokens
        if limit is None:
            return None
        return Cut(self.truncation_side, None if limit == -1 else limit)

    def activation_for(self, default: Activation) -> Activation:
        """What is done to the scores: as the request says, else ``default``."""
        asked = next((flag for flag in (self.use_activation, self.activation, self.softmax) if flag is not None), None)
        if asked is None:
            return default
        return "sigmoid" if asked else "none"

    def id(self, kind: str, call: Call) -> str:
        """The id of the answer."""
        return f"{kind}-{self.request_id or call.request_id}"


class _Inputs(_Options):
    """Raw texts or token ids in ``input``, or one conversation in ``messages``."""

    input: RawInput | None = Field(None, description="A text, several, token ids, or several lists of them.")
    messages: list[ChatMessage] | None = Field(None, description="One conversation, for the model's chat template.")
    add_special_tokens: bool | None = Field(None, description="True for input, False for messages, if null.")
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = Field(None, description="Refused: the model's own template decides.")
    chat_template_kwargs: dict[str, Any] | None = None

    def scoring_inputs(self) -> list[ScoringInput]:
        """What is to be scored.

        Raises:
            Refusal: Neither input nor messages, or both.
        """
        if (self.input is None) == (self.messages is None):
            raise Refusal(RefusalKind.INVALID, "give either input or messages", param="input")
        if self.messages is not None:
            return [self._conversation(self.messages)]
        special = self.add_special_tokens is not False
        given = self.input
        if isinstance(given, str):
            return [RawText(given, add_special_tokens=special)]
        assert given is not None
        if given and isinstance(given[0], int):
            return [RawIds(given)]
        return [
            RawText(item, add_special_tokens=special) if isinstance(item, str) else RawIds(item)  # type: ignore[arg-type]
            for item in given
        ]

    def _conversation(self, given: list[dict[str, Any]]) -> Group:
        if self.chat_template is not None:
            raise Refusal(
                RefusalKind.INVALID, "chat_template is refused: the model's own decides", param="chat_template"
            )
        if self.add_special_tokens:
            raise Refusal(
                RefusalKind.INVALID,
                "add_special_tokens cannot be true for messages: the chat template writes them",
                param="add_special_tokens",
            )
        messages = chat(given)
        if not messages:
            raise Refusal(RefusalKind.EMPTY, "messages holds no message with a text", param="messages")
        options = check_template_options(self.chat_template_kwargs)
        for name in ("add_generation_prompt", "continue_final_message"):
            if getattr(self, name):
                options[name] = True
        return Group([], (messages,), meta={"chat_template_kwargs": options})


class Classify(_Inputs):
    """What to classify."""


class Pooling(_Inputs):
    """What to pool."""

    task: str | None = Field(None, description="classify, or null for the same; a server of scores knows no other.")
    encoding_format: Literal["float", "base64"] = "float"


class Score(_Options):
    """Pairs of texts: one against one, one against several, or several against as many."""

    text_1: str | list[str] = Field(validation_alias=AliasChoices("text_1", "data_1", "queries"))
    text_2: str | list[str] = Field(validation_alias=AliasChoices("text_2", "data_2", "documents", "items"))


class Rerank(_Options):
    """A question and answers to it."""

    query: str
    documents: list[str]
    top_n: int = Field(0, ge=0, description="How many to return; 0 for all.")


class Usage(BaseModel):
    """Tokens of the request."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class ClassData(BaseModel):
    """One input's score."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class PoolingData(BaseModel):
    """One input's score, as a list of one number, or as the base64 of its four bytes."""

    index: int
    object: str
    data: list[float] | str


class ScoreData(BaseModel):
    """One pair's score."""

    index: int
    object: str
    score: float


class _Answer(BaseModel):
    id: str
    object: str
    created: int
    model: str
    usage: Usage


class ClassifyAnswer(_Answer):
    """Scores in the order of the inputs."""

    data: list[ClassData]


class PoolingAnswer(_Answer):
    """Scores in the order of the inputs."""

    data: list[PoolingData]


class ScoreAnswer(_Answer):
    """Scores in the order of the pairs."""

    data: list[ScoreData]


class Document(BaseModel):
    """A document as it came."""

    text: str
    multi_modal: None = None


class Ranked(BaseModel):
    """A document's place in the request, and its score."""

    index: int
    document: Document
    relevance_score: float


class RerankAnswer(BaseModel):
    """Documents, best first."""

    id: str
    model: str
    usage: Usage
    results: list[Ranked]


def _usage(scored: ScoredInputs) -> dict[str, Any]:
    tokens = scored.total_tokens
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}


def _answer(kind: str, body: _Options, call: Call, data: list[dict[str, Any]], scored: ScoredInputs) -> dict[str, Any]:
    return {
        "id": body.id(kind, call),
        "object": "list",
        "created": int(time.time()),
        "model": body.model or call.model.name,
        "data": data,
        "usage": _usage(scored),
    }


async def classify(body: Classify, call: Call) -> dict[str, Any]:
    """The score of each input, in a list of its own."""
    return await _classify(body, call, call.model.activation)


async def v1_classify(body: Classify, call: Call) -> dict[str, Any]:
    """As ``/classify``, but a sigmoid of each score unless ``use_activation`` is false, as SGLang has it."""
    return await _classify(body, call, "sigmoid")


async def _classify(body: Classify, call: Call, default: Activation) -> dict[str, Any]:
    scored = await call.score(body.scoring_inputs(), body.cut)
    activation = body.activation_for(default)
    data = [
        {
            "index": index,
            "label": call.model.label,
            "probs": [activated(row[0], activation)],
            "num_classes": 1,
        }
        for index, row in enumerate(scored.scores)
    ]
    return _answer("classify", body, call, data, scored)


async def pooling(body: Pooling, call: Call) -> dict[str, Any]:
    """The score of each input, in a list of its own."""
    if body.task not in (None, "classify"):
        raise Refusal(RefusalKind.INVALID, "task must be 'classify': this server gives scores", param="task")
    scored = await call.score(body.scoring_inputs(), body.cut)
    activation = body.activation_for(call.model.activation)
    values = [activated(row[0], activation) for row in scored.scores]
    data = [
        {
            "index": index,
            "object": "pooling",
            "data": [value] if body.encoding_format == "float" else _base64(value),
        }
        for index, value in enumerate(values)
    ]
    return _answer("pool", body, call, data, scored)


def _base64(value: float) -> str:
    return base64.b64encode(struct.pack("<f", value)).decode()


async def score(body: Score, call: Call) -> dict[str, Any]:
    """The score of each pair: how good the second text is as an answer to the first."""
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if not first or not second:
        raise Refusal(RefusalKind.EMPTY, "text_1 and text_2 need at least one text each", param="text_1")
    if len(first) not in (1, len(second)):
        raise Refusal(
            RefusalKind.INVALID,
            f"{len(first)} texts against {len(second)}: expected one against several, or as many as there are",
            param="text_1",
        )
    has_template = call.model.has_template
    if len(first) == 1:
        inputs: list[ScoringInput] = [question_and_answers(first[0], second, has_template=has_template)]
    else:
        pairs = zip(first, second, strict=True)
        inputs = [question_and_answers(question, [answer], has_template=has_template) for question, answer in pairs]
    scored = await call.score(inputs, body.cut)
    activation = body.activation_for(call.model.activation)
    data = [
        {"index": index, "object": "score", "score": activated(value, activation)}
        for index, value in enumerate(value for row in scored.scores for value in row)
    ]
    return _answer("embd", body, call, data, scored)


async def rerank(body: Rerank, call: Call) -> dict[str, Any]:
    """The documents as answers to the query, best first."""
    if not body.documents:
        raise Refusal(RefusalKind.EMPTY, "documents needs at least one text", param="documents")
    group = question_and_answers(body.query, body.documents, has_template=call.model.has_template)
    scored = await call.score([group], body.cut)
    (scores,) = scored.scores
    activation = body.activation_for(call.model.activation)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or None]
    return {
        "id": body.id("rerank", call),
        "model": body.model or call.model.name,
        "usage": _usage(scored),
        "results": [
            {
                "index": index,
                "document": {"text": body.documents[index], "multi_modal": None},
                "relevance_score": activated(scores[index], activation),
            }
            for index in order
        ],
    }


_ERRORS = ErrorShape(
    openai_error,
    {
        RefusalKind.INVALID: 400,
        RefusalKind.EMPTY: 400,
        RefusalKind.TOO_LONG: 400,
        RefusalKind.TOO_MANY_INPUTS: 400,
    },
)

CLASSIFY = Endpoint(Classify, classify, _ERRORS, ClassifyAnswer, None, key="input")
V1_CLASSIFY = Endpoint(Classify, v1_classify, _ERRORS, ClassifyAnswer, "sigmoid")
POOLING = Endpoint(Pooling, pooling, _ERRORS, PoolingAnswer, None)
SCORE = Endpoint(Score, score, _ERRORS, ScoreAnswer, None)
RERANK = Endpoint(Rerank, rerank, _ERRORS, RerankAnswer, None, key="documents")
