"""Which protocol answers on which route, and what tells two on the same route apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xrlhf.serving.protocols import llamafactory, openrlhf, rewards, sglang, tei, vllm
from xrlhf.serving.protocols.shape import Endpoint, ErrorShape, openai_error

__all__ = ["ROUTES", "Route", "error_shape"]


@dataclass(frozen=True)
class Route:
    """A path that takes ``POST``.

    Args:
        path: The path.
        protocol: Whose it is, for the OpenAPI description.
        endpoints: The protocols on it; the first one answers where no key of a body says otherwise.
    """

    path: str
    protocol: str
    endpoints: tuple[Endpoint, ...]

    def choose(self, body: Any) -> Endpoint:
        """The protocol that a body is meant for, told by its keys."""
        keys = body.keys() if isinstance(body, Mapping) else ()
        return next((endpoint for endpoint in self.endpoints if endpoint.key in keys), self.endpoints[0])


ROUTES: dict[str, Route] = {
    route.path: route
    for route in (
        Route("/v1/rewards", "xrlhf", (rewards.REWARDS,)),
        Route("/get_reward", "OpenRLHF", (openrlhf.GET_REWARD,)),
        Route("/classify", "vLLM, SGLang", (vllm.CLASSIFY, sglang.CLASSIFY)),
        Route("/v1/classify", "SGLang", (vllm.V1_CLASSIFY,)),
        Route("/v1/embeddings", "SGLang", (sglang.EMBEDDINGS,)),
        Route("/pooling", "vLLM", (vllm.POOLING,)),
        Route("/score", "vLLM", (vllm.SCORE,)),
        Route("/v1/score", "vLLM", (vllm.SCORE,)),
        Route("/rerank", "vLLM, text-embeddings-inference", (vllm.RERANK, tei.RERANK)),
        Route("/v1/rerank", "vLLM", (vllm.RERANK,)),
        Route("/v2/rerank", "vLLM", (vllm.RERANK,)),
        Route("/predict", "text-embeddings-inference", (tei.PREDICT,)),
        Route("/v1/score/evaluation", "LLaMA-Factory", (llamafactory.SCORE_EVALUATION,)),
    )
}

_OWN_ERRORS = ErrorShape(openai_error)


def error_shape(path: str, body: Any = None) -> ErrorShape:
    """How a request that came to ``path`` is told that something went wrong.

    Args:
        path: The path.
        body: What it held, where that is known.
    """
    route = ROUTES.get(path)
    return _OWN_ERRORS if route is None else route.choose(body).errors
