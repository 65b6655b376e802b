"""What the server counts, in the text format of Prometheus."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["METRICS_FOLDER", "Metrics"]

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Where several processes put their numbers together; prometheus_client reads it when a metric is made."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "xrlhf_requests", "Requests by route and HTTP status.", ("route", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "xrlhf_request_seconds",
            "From a request's first byte to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokenise_seconds = Histogram(
            "xrlhf_tokenise_seconds", "Tokenising a request, waiting included.", buckets=_SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "xrlhf_queue_seconds", "From a request's tokens to its first batch.", buckets=_SECONDS, registry=registry
        )
        self.compute_seconds = Histogram(
            "xrlhf_compute_seconds",
            "From a request's first batch to the end of its last.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_seconds = Histogram("xrlhf_batch_seconds", "One forward pass.", buckets=_SECONDS, registry=registry)
        self.batch_tokens = Histogram(
            "xrlhf_batch_tokens", "Tokens of one forward pass.", buckets=_TOKENS, registry=registry
        )
        self.batch_conversations = Histogram(
            "xrlhf_batch_conversations", "Conversations of one forward pass.", buckets=_SIZES, registry=registry
        )
        self.conversations = Counter("xrlhf_conversations", "Conversations that got a score.", registry=registry)
        self.saved_tokens = Counter(
            "xrlhf_saved_tokens", "Tokens computed once for several requests.", registry=registry
        )
        self.abandoned = Counter(
            "xrlhf_abandoned_requests", "Requests whose client left before the answer.", registry=registry
        )
        self.in_server = Gauge(
            "xrlhf_conversations_in_server",
            "Conversations let in and not answered yet.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def batch(self, *, num_tokens: int, num_saved: int, num_conversations: int, seconds: float) -> None:
        """Count one forward pass; see :class:`~xrlhf.serving.batching.BatchObserver`."""
        self.batch_seconds.observe(seconds)
        self.batch_tokens.observe(num_tokens)
        self.batch_conversations.observe(num_conversations)
        self.saved_tokens.inc(num_saved)

    def page(self) -> bytes:
        """All numbers as text: of all processes, where they share a folder."""
        if METRICS_FOLDER not in os.environ:
            return generate_latest(self._registry)
        everybody = CollectorRegistry()
        MultiProcessCollector(everybody)
        return generate_latest(everybody)
