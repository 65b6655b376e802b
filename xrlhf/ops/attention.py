"""Segment attention: every packed token attends to its own prompt and its own past, and to nothing else.

The function is registered with ``transformers`` under :data:`ATTENTION_NAME` when a model asks for it, and receives
the :class:`SegmentLayout` of the batch as the keyword ``segments``, which ``transformers`` hands down to every layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from xrlhf.errors import ModelError
from xrlhf.structures import SegmentLayout

__all__ = ["ATTENTION_NAME", "register_segment_attention", "segment_attention"]

ATTENTION_NAME = "xrlhf_segments"


def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: SegmentLayout, *, scaling: float | None = None
) -> Tensor:
    """Attention over one packed row.

    Args:
        query: (1, heads, T, D).
        key: (1, key_value_heads, T, D), heads a multiple of key_value_heads.
        value: (1, key_value_heads, T, D).
        segments: Who attends to whom; covers the T tokens.
        scaling: Factor on the scores before the softmax; 1/sqrt(D) if None.

    Returns:
        (1, T, heads, D of the values).

    Raises:
        ValueError: The layout does not cover the row, a context is no earlier segment, or there is more than one row.
    """
    if query.shape[0] != 1 or query.shape[2] != segments.num_tokens or key.shape[2] != segments.num_tokens:
        raise ValueError(
            f"segments cover {segments.num_tokens} tokens of one row, got {query.shape[2]} queries and"
            f" {key.shape[2]} keys in {query.shape[0]} rows"
        )
    grouped = query.shape[1] != key.shape[1]
    bounds = list(zip(segments.start, segments.stop, strict=True))
    sizes = [stop - start for start, stop in bounds]
    # One split and one concatenation: slicing per segment would cost a row-sized gradient for every slice.
    queries, keys, values = query.split(sizes, dim=2), key.split(sizes, dim=2), value.split(sizes, dim=2)
    contexts: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    outputs: list[Tensor] = []
    for s, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
        seen = (segments.context_start[s], segments.context_stop[s])
        if seen[0] == seen[1]:
            contexts[bounds[s]] = (k, v)
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        elif seen in contexts:
            context_keys, context_values = contexts[seen]
            size, before = q.shape[2], context_keys.shape[2]
            mask = torch.ones(size, before + size, dtype=torch.bool, device=q.device).tril(before)
            out = scaled_dot_product_attention(
                q,
                torch.cat([context_keys, k], dim=2),
                torch.cat([context_values, v], dim=2),
                attn_mask=mask,
                scale=scaling,
                enable_gqa=grouped,
            )
        else:
            raise ValueError(f"segment {s} has the context {seen[0]}:{seen[1]}, which is no earlier prompt")
        outputs.append(out)
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _registered_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: SegmentLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    is_causal: bool | None = None,
    segment_calls: list[str] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What ``transformers`` calls: refuses whatever the segment function does not compute.

    ``segment_calls`` collects the name of every module that comes here, for whoever must know that all layers do.
    """
    if segment_calls is not None:
        segment_calls.append(type(module).__name__)
    if segments is None:
        raise ModelError("segment attention needs packed batches: call the model through xrlhf, or set 'sdpa' on it")
    if dropout:
        raise ModelError(
            f"{type(module).__name__} drops {dropout:g} of its attention, which packed attention does not: "
            "set its attention dropout to 0"
        )
    if is_causal is False or (is_causal is None and getattr(module, "is_causal", True) is False):
        raise ModelError(f"{type(module).__name__} also attends to later tokens: packed attention needs a causal model")
    unsupported = {"soft-capped scores": softcap, "attention sinks": s_aux, "position biases": position_bias}
    for what, given in unsupported.items():
        if given is not None:
            raise ModelError(f"{type(module).__name__} needs {what}, which packed attention does not compute")
    if sliding_window is not None and longest_conversation(segments) > sliding_window:
        raise ModelError(
            f"{type(module).__name__} attends within a window of {sliding_window} tokens and a conversation has "
            f"{longest_conversation(segments)}: set max_length to at most {sliding_window}"
        )
    return segment_attention(query, key, value, segments, scaling=scaling), None


def longest_conversation(segments: SegmentLayout) -> int:
    """Tokens of the longest conversation (prompt and one response) in a row."""
    return max(
        stop - start + context_stop - context_start
        for start, stop, context_start, context_stop in zip(
            segments.start, segments.stop, segments.context_start, segments.context_stop, strict=True
        )
    )


def register_segment_attention() -> str:
    """Make the function known to ``transformers`` (doing so again changes nothing) and return its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _registered_attention)
    return ATTENTION_NAME
