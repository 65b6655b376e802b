"""Continuous batching: groups of all waiting requests share forward passes, and a thread of its own computes them.

While one batch is computed, what arrives waits. The next batch always holds what has waited longest, so nothing
starves; around it go groups of about its length. Groups of different requests that begin alike are joined before, so
sixteen requests for sixteen answers to one prompt cost about as much as one request for all of them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from xrlhf.errors import error_line
from xrlhf.serving.joining import JoinedGroup, join_groups
from xrlhf.serving.refusal import Refusal, RefusalKind
from xrlhf.structures import TokenizedGroup

__all__ = ["BatchObserver", "Batcher", "BatchingResult", "ComputeScores"]

logger = logging.getLogger("xrlhf")

ComputeScores = Callable[[Sequence[TokenizedGroup]], list[list[float]]]
"""Scores of groups in one forward pass, one list a group; may hold numbers that are not finite."""

_WINDOW = 4
"""How many batches' worth of what waited longest is looked at to make the next one."""


@dataclass(frozen=True)
class BatchingResult:
    """What a request gets.

    Args:
        scores: By group, the scores of its responses, in the order they came in.
        queue_seconds: From the request's arrival to the start of its first batch.
        compute_seconds: From there to the end of its last one.
    """

    scores: list[list[float]]
    queue_seconds: float
    compute_seconds: float


class BatchObserver(Protocol):
    """Told of every batch, from the thread that computes."""

    def batch(self, *, num_tokens: int, num_saved: int, num_conversations: int, seconds: float) -> None:
        """A batch was computed.

        Args:
            num_tokens: Tokens of the batch.
            num_saved: Tokens that joining groups of different requests saved.
            num_conversations: Responses in it.
            seconds: How long it took.
        """
        ...


class _Request:
    """A request that waits or is being computed."""

    def __init__(self, groups: Sequence[TokenizedGroup], done: Callable[[], None]) -> None:
        self.scores: list[list[float]] = [[math.nan] * len(group.response_ids) for group in groups]
        self.arrived = time.perf_counter()
        self.started: float | None = None
        self.finished = self.arrived
        self.remaining = 0
        self.refusal: Refusal | None = None
        self.cancelled = False
        self._done = done

    @property
    def is_over(self) -> bool:
        """Whether nothing needs to be computed for it any more."""
        return self.cancelled or self.refusal is not None

    def end(self) -> None:
        """Tell whoever waits that there is an answer."""
        self.finished = time.perf_counter()
        self._done()


@dataclass(eq=False)
class _Part:
    """What is computed in one piece: a group of a request, or some responses of one too large for a batch."""

    request: _Request
    group: TokenizedGroup
    number: int
    first_response: int = 0

    def put(self, scores: Sequence[float]) -> None:
        """Keep the scores of this part."""
        stop = self.first_response + len(scores)
        self.request.scores[self.number][self.first_response : stop] = scores


@dataclass
class _Batch:
    """What is computed in one forward pass."""

    joined: list[JoinedGroup]
    parts: list[_Part] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(item.group.num_tokens for item in self.joined)


class Batcher:
    """Scores groups of many requests together.

    Args:
        compute: Scores groups in one forward pass; called by one thread alone.
        token_budget: Most tokens of a pass, unless a single conversation is longer.
        join: Whether groups that begin alike are joined; of no use to models that read every conversation alone.
        observer: Is told of every batch.
    """

    def __init__(
        self,
        compute: ComputeScores,
        *,
        token_budget: int,
        join: bool = True,
        observer: BatchObserver | None = None,
    ) -> None:
        self._compute = compute
        self._token_budget = token_budget
        self._join = join
        self._observer = observer
        self._changed = threading.Condition()
        self._waiting: list[_Part] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="xrlhf-scores", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Let what waits be computed, then end the thread; returns after ``timeout`` seconds in any case."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)

    @property
    def is_working(self) -> bool:
        """Whether there is a thread to compute anything."""
        return self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Groups that wait for a batch."""
        return len(self._waiting)

    async def score(self, groups: Sequence[TokenizedGroup]) -> BatchingResult:
        """Scores of the responses of every group, in order.

        Cancelling this drops what has not been computed yet.

        Raises:
            Refusal: The model failed on these groups, or gives scores that are not finite.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()

        def done() -> None:
            try:
                loop.call_soon_threadsafe(_set, answered)
            except RuntimeError:
                # The loop is closed, so nobody waits any more.
                logger.debug("an answer came after the server had ended")

        request = _Request(groups, done)
        parts = [part for number, group in enumerate(groups) for part in self._parts(request, group, number)]
        request.remaining = len(parts)
        if parts:
            with self._changed:
                if self._stopping or not self.is_working:
                    raise Refusal(RefusalKind.NOT_READY, "the server computes no more scores: it is ending")
                self._waiting += parts
                self._changed.notify()
            try:
                await answered
            except asyncio.CancelledError:
                request.cancelled = True
                with self._changed:
                    self._waiting = [part for part in self._waiting if part.request is not request]
                raise
        if request.refusal is not None:
            raise request.refusal
        started = request.arrived if request.started is None else request.started
        return BatchingResult(request.scores, started - request.arrived, request.finished - started)

    def _parts(self, request: _Request, group: TokenizedGroup, number: int) -> list[_Part]:
        """A group in one part, or in several where it holds more responses than fit a batch."""
        if group.num_tokens <= self._token_budget or len(group.response_ids) == 1:
            return [_Part(request, group, number)]
        parts: list[_Part] = []
        start, tokens = 0, len(group.prompt_ids)
        for index, ids in enumerate(group.response_ids):
            if index > start and tokens + len(ids) > self._token_budget:
                parts.append(self._some_responses(request, group, number, start, index))
                start, tokens = index, len(group.prompt_ids)
            tokens += len(ids)
        return [*parts, self._some_responses(request, group, number, start, len(group.response_ids))]

    @staticmethod
    def _some_responses(request: _Request, group: TokenizedGroup, number: int, start: int, stop: int) -> _Part:
        some = TokenizedGroup(group.prompt_ids, group.response_ids[start:stop])
        return _Part(request, some, number, start)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if not self._waiting:
                    return
                window = self._window()
            batch = self._choose(window)
            taken = set(map(id, batch.parts))
            with self._changed:
                self._waiting = [part for part in self._waiting if id(part) not in taken]
            self._run(batch)

    def _window(self) -> list[_Part]:
        """What has waited longest, of requests that still want it."""
        self._waiting = [part for part in self._waiting if not part.request.is_over]
        tokens, stop = 0, 0
        while stop < len(self._waiting) and tokens < _WINDOW * self._token_budget:
            tokens += self._waiting[stop].group.num_tokens
            stop += 1
        return self._waiting[:stop]

    def _choose(self, window: list[_Part]) -> _Batch:
        """A batch with what has waited longest, and with groups of about its length as far as there is room."""
        groups = [part.group for part in window]
        if self._join:
            joined = join_groups(groups, token_budget=self._token_budget)
        else:
            joined = [JoinedGroup(group, (number,)) for number, group in enumerate(groups)]
        if not joined:
            return _Batch([])
        oldest = next(item for item in joined if 0 in item.members)
        length = oldest.group.num_tokens
        room = self._token_budget
        taken = []
        for item in sorted(joined, key=lambda item: (item is not oldest, abs(item.group.num_tokens - length))):
            if item is oldest or item.group.num_tokens <= room:
                taken.append(item)
                room -= item.group.num_tokens
        # As offline scoring has them: the longest first, of equal ones the older.
        taken.sort(key=lambda item: (-item.group.num_tokens, item.members[0]))
        return _Batch(taken, [window[member] for item in taken for member in item.members])

    def _run(self, batch: _Batch) -> None:
        """Compute a batch; where it fails or is not finite, every part of it by itself, to find whose fault it is."""
        began = time.perf_counter()
        for part in batch.parts:
            if part.request.started is None:
                part.request.started = began
        try:
            scores = [score for group in self._scores([item.group for item in batch.joined]) for score in group]
        except Exception as error:
            if len(batch.parts) > 1:
                self._run_alone(batch.parts)
            else:
                self._fail(batch.parts, error)
            return
        if not all(map(math.isfinite, scores)) and len(batch.parts) > 1:
            self._run_alone(batch.parts)
            return
        seconds = time.perf_counter() - began
        at = 0
        for part in batch.parts:
            count = len(part.group.response_ids)
            self._finish(part, scores[at : at + count])
            at += count
        if self._observer is not None and batch.parts:
            apart = sum(part.group.num_tokens for part in batch.parts)
            self._observer.batch(
                num_tokens=batch.num_tokens,
                num_saved=apart - batch.num_tokens,
                num_conversations=len(scores),
                seconds=seconds,
            )

    def _scores(self, groups: Sequence[TokenizedGroup]) -> list[list[float]]:
        return self._compute(groups) if groups else []

    def _run_alone(self, parts: Sequence[_Part]) -> None:
        for part in parts:
            if part.request.is_over:
                continue
            self._run(_Batch([JoinedGroup(part.group, (0,))], [part]))

    def _finish(self, part: _Part, scores: Sequence[float]) -> None:
        request = part.request
        if request.is_over:
            return
        if not all(map(math.isfinite, scores)):
            request.refusal = Refusal(
                RefusalKind.NOT_FINITE, "the model gives a score that is not finite for this request"
            )
            request.end()
            return
        part.put(scores)
        request.remaining -= 1
        if not request.remaining:
            request.end()

    def _fail(self, parts: Sequence[_Part], error: Exception) -> None:
        # What libraries say of a failure names shapes and devices, never the text.
        logger.error("scoring failed: %s: %s", type(error).__name__, error_line(error))
        for part in parts:
            if not part.request.is_over:
                part.request.refusal = Refusal(
                    RefusalKind.FAILED, f"the model failed on this request: {type(error).__name__}"
                )
                part.request.end()


def _set(answered: asyncio.Future[None]) -> None:
    """Wake whoever waits, unless nobody does any more."""
    if not answered.done():
        answered.set_result(None)
