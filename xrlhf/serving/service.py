"""From the inputs of one request to its scores: admission, tokenisation, batching, and a client that may leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from xrlhf.serving.batching import Batcher
from xrlhf.serving.inputs import Cut, EncodedInputs, ScoringInput
from xrlhf.serving.metrics import Metrics
from xrlhf.serving.model import ServedModel
from xrlhf.serving.refusal import Refusal, RefusalKind
from xrlhf.serving.settings import Limits
from xrlhf.structures import Group

__all__ = ["RewardService", "ScoredInputs", "Timings"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in seconds.

    Args:
        tokenise: From its arrival to its tokens.
        queue: From there to its first batch.
        compute: From there to the end of its last batch.
        total: All of it.
    """

    tokenise: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class ScoredInputs:
    """What a request gets.

    Args:
        scores: By input, the raw score of each of its conversations.
        num_tokens: By input, the tokens of each.
        truncated: By input, whether each was cut.
        timings: Where the time went.
    """

    scores: list[list[float]]
    num_tokens: list[list[int]]
    truncated: list[list[bool]]
    timings: Timings = Timings()

    @property
    def total_tokens(self) -> int:
        """Tokens of all conversations, each counted in full."""
        return sum(sum(lengths) for lengths in self.num_tokens)

    @property
    def num_truncated(self) -> int:
        """Conversations that were cut."""
        return sum(sum(cut) for cut in self.truncated)

    def headers(self) -> dict[str, str]:
        """Timings in milliseconds, and counts, as headers of an answer: for protocols without a place for them."""
        times = self.timings
        return {
            "x-tokenization-time": f"{1000 * times.tokenise:.2f}",
            "x-queue-time": f"{1000 * times.queue:.2f}",
            "x-inference-time": f"{1000 * times.compute:.2f}",
            "x-total-time": f"{1000 * times.total:.2f}",
            "x-compute-tokens": str(self.total_tokens),
            "x-truncated-inputs": str(self.num_truncated),
        }


class RewardService:
    """Scores for requests, within limits.

    Args:
        limits: What is refused.
        metrics: What counts.

    Attributes:
        draining: Set to let nothing new in, while what runs is finished.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self.metrics = metrics
        self.draining = False
        self._model: ServedModel | None = None
        self._batcher: Batcher | None = None
        # One thread: tokenizers are not made for several.
        self._tokenising = ThreadPoolExecutor(max_workers=1, thread_name_prefix="xrlhf-tokens")
        self._conversations = 0
        self._requests = 0

    def attach(self, model: ServedModel) -> None:
        """Be ready: ``model`` is what scores."""
        self._batcher = Batcher(
            model.compute, token_budget=model.token_budget, join=model.shares_prompts, observer=self.metrics
        )
        self._batcher.start()
        self._model = model

    def close(self, timeout: float | None = None) -> None:
        """End the threads; returns after ``timeout`` seconds in any case."""
        self.draining = True
        self._tokenising.shutdown(wait=False, cancel_futures=True)
        if self._batcher is not None:
            self._batcher.stop(timeout)

    @property
    def obstacle(self) -> str | None:
        """Why no scores can be had now; None where they can."""
        if self.draining:
            return "the server is ending"
        if self._batcher is None:
            return "the model is being loaded"
        return None if self._batcher.is_working else "the thread that computes scores has ended"

    @property
    def is_healthy(self) -> bool:
        """False where only a new start helps."""
        return self._batcher is None or self.draining or self._batcher.is_working

    @property
    def num_running(self) -> int:
        """Requests that were let in and have no answer yet."""
        return self._requests

    @property
    def model(self) -> ServedModel:
        """The model.

        Raises:
            Refusal: It is not there yet.
        """
        if self._model is None:
            raise self._not_ready()
        return self._model

    async def score(
        self, inputs: Sequence[ScoringInput], cut: Cut | None = None, *, receive: Receive | None = None
    ) -> ScoredInputs:
        """Scores of all inputs, in order.

        Args:
            inputs: At least one.
            cut: What to do with conversations that are too long; None refuses them.
            receive: The request's channel once its body has been read: what comes then says that the client has left.

        Raises:
            Refusal: There are no scores for this request.
        """
        if self.obstacle is not None:
            raise self._not_ready()
        count = sum(len(item.responses) if isinstance(item, Group) else 1 for item in inputs)
        self._let_in(count)
        try:
            work = self._score(inputs, cut)
            return await (work if receive is None else self._while_there(work, receive))
        finally:
            self._requests -= 1
            self._conversations -= count
            self.metrics.in_server.dec(count)

    def _let_in(self, count: int) -> None:
        limits = self.limits
        if count == 0:
            raise Refusal(RefusalKind.EMPTY, "there is nothing to score")
        if count > limits.max_inputs:
            raise Refusal(
                RefusalKind.TOO_MANY_INPUTS,
                f"{count} conversations in one request, the limit is {limits.max_inputs}",
            )
        if self._conversations + count > limits.max_queue:
            raise Refusal(
                RefusalKind.OVERLOADED,
                f"the server is full: {self._conversations} conversations are in it and {count} more would be above "
                f"its limit of {limits.max_queue}",
                status=limits.overload_status,
                headers={"Retry-After": str(limits.retry_after)},
            )
        self._requests += 1
        self._conversations += count
        self.metrics.in_server.inc(count)

    def _not_ready(self) -> Refusal:
        return Refusal(
            RefusalKind.NOT_READY,
            self.obstacle or "the model is being loaded",
            headers={"Retry-After": str(self.limits.retry_after)},
        )

    async def _score(self, inputs: Sequence[ScoringInput], cut: Cut | None) -> ScoredInputs:
        assert self._batcher is not None
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        encoded: EncodedInputs = await loop.run_in_executor(self._tokenising, self.model.encoder.encode, inputs, cut)
        tokenised = time.perf_counter() - began
        result = await self._batcher.score(encoded.groups)
        timings = Timings(tokenised, result.queue_seconds, result.compute_seconds, time.perf_counter() - began)
        self.metrics.tokenise_seconds.observe(timings.tokenise)
        self.metrics.queue_seconds.observe(timings.queue)
        self.metrics.compute_seconds.observe(timings.compute)
        self.metrics.conversations.inc(sum(map(len, result.scores)))
        return ScoredInputs(result.scores, encoded.num_tokens, encoded.truncated, timings)

    async def _while_there(self, work: Awaitable[ScoredInputs], receive: Receive) -> ScoredInputs:
        """The result of ``work``, which is dropped when the client leaves."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.metrics.abandoned.inc()
                raise Refusal(RefusalKind.CLIENT_GONE, "the client has left")
            return working.result()
        finally:
            for task in (working, leaving):
                task.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
