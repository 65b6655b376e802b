"""Segment attention by the flash-attn package (Dao, arXiv:2307.08691): CUDA, the extra ``flash-attn``."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

from xrlhf.ops.attention.rules import AttentionBackend, AttentionRules, half_precision_reason
from xrlhf.ops.attention.varlen import KeyGather, varlen_layout
from xrlhf.structures import SegmentLayout

__all__ = ["FLASH_ATTN"]

_WIDEST_HEAD = 256


def _refusal(query: Tensor, segments: SegmentLayout, rules: AttentionRules) -> str | None:
    if query.device.type != "cuda":
        return f"runs on CUDA, not on {query.device.type}"
    if find_spec("flash_attn") is None:
        return "is not installed: pip install flash-attn"
    if query.shape[-1] > _WIDEST_HEAD:
        return f"takes heads of at most {_WIDEST_HEAD} dimensions, not {query.shape[-1]}"
    if rules.sinks is not None:
        return "has no attention sinks"
    return half_precision_reason(query)


def _attend(query: Tensor, key: Tensor, value: Tensor, segments: SegmentLayout, rules: AttentionRules) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    layout = varlen_layout(segments, query.device)
    out: Tensor = flash_attn_varlen_func(
        query,
        KeyGather.apply(key, layout.key_index),
        KeyGather.apply(value, layout.key_index),
        cu_seqlens_q=layout.query_ends,
        cu_seqlens_k=layout.key_ends,
        max_seqlen_q=layout.longest_query,
        max_seqlen_k=layout.longest_key,
        softmax_scale=rules.scaling,
        causal=True,
        # Counted without the token itself.
        window_size=(-1 if rules.window is None else rules.window - 1, 0),
        softcap=rules.softcap or 0.0,
    )
    return out


FLASH_ATTN = AttentionBackend("flash_attn", _refusal, _attend)
