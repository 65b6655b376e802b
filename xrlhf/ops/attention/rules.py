"""What a layer asks of attention beyond who sees whom, and what a backend is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xrlhf.structures import SegmentLayout

__all__ = ["AttentionBackend", "AttentionRules", "longest_conversation"]


@dataclass(frozen=True)
class AttentionRules:
    """How the scores of visible keys become weights.

    Args:
        scaling: Factor on the products of queries and keys.
        window: A token sees only the last ``window`` positions of its conversation, its own included; None for all.
        softcap: Scores ``s`` become ``softcap * tanh(s / softcap)`` (Gemma 2, arXiv:2408.00118, section 2); None to
            leave them.
        sinks: (heads,) one more score per head that takes part in the softmax and has no value (gpt-oss,
            arXiv:2508.10925); None without.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True)
class AttentionBackend:
    """One way to compute segment attention.

    Args:
        name: What recipes and messages call it.
        refusal: Takes the (T, heads, D) query, the layout and the rules; why this backend cannot compute them here,
            as the end of a sentence, or None where it can.
        attend: Takes query (T, heads, D), key (T, key_value_heads, D), value (T, key_value_heads, D of the values), the
            layout and the rules; returns (T, heads, D of the values) in the type of the query.
    """

    name: str
    refusal: Callable[[Tensor, SegmentLayout, AttentionRules], str | None]
    attend: Callable[[Tensor, Tensor, Tensor, SegmentLayout, AttentionRules], Tensor]


def longest_conversation(segments: SegmentLayout) -> int:
    """Tokens of the longest conversation (prompt and one response) in a row."""
    return max(
        stop - start + context_stop - context_start
        for start, stop, context_start, context_stop in zip(
            segments.start, segments.stop, segments.context_start, segments.context_stop, strict=True
        )
    )


def half_precision_reason(query: Tensor) -> str | None:
    """Why a kernel for 16-bit types cannot take this query; None where it can."""
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"computes in float16 or bfloat16, not {str(query.dtype).removeprefix('torch.')}"
    return None
