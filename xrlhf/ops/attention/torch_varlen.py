"""Segment attention by torch's own kernel for sequences of different lengths: CUDA, torch 2.10 and later."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from xrlhf.ops.attention.rules import AttentionBackend, AttentionRules, half_precision_reason
from xrlhf.ops.attention.varlen import KeyGather, varlen_layout
from xrlhf.structures import SegmentLayout

__all__ = ["TORCH_VARLEN"]

_AMPERE = (8, 0)
_WIDEST_HEAD = 256


def _refusal(query: Tensor, segments: SegmentLayout, rules: AttentionRules) -> str | None:
    if query.device.type != "cuda":
        return f"runs on CUDA, not on {query.device.type}"
    if find_spec("torch.nn.attention.varlen") is None:
        return f"comes with torch 2.10, this is {torch.__version__}"
    if torch.cuda.get_device_capability(query.device) < _AMPERE:
        return "needs an Ampere GPU or a later one"
    if query.shape[-1] > _WIDEST_HEAD or query.shape[-1] % 8:
        return f"takes heads of a multiple of 8 and at most {_WIDEST_HEAD} dimensions, not {query.shape[-1]}"
    if rules.softcap is not None:
        return "does not cap scores"
    if rules.sinks is not None:
        return "has no attention sinks"
    return half_precision_reason(query)


def _attend(query: Tensor, key: Tensor, value: Tensor, segments: SegmentLayout, rules: AttentionRules) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    layout = varlen_layout(segments, query.device)
    out = varlen_attn(
        query.contiguous(),
        KeyGather.apply(key, layout.key_index),
        KeyGather.apply(value, layout.key_index),
        layout.query_ends,
        layout.key_ends,
        layout.longest_query,
        layout.longest_key,
        scale=rules.scaling,
        # Counted without the token itself; 0 ahead of it makes the attention causal.
        window_size=(-1 if rules.window is None else rules.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


TORCH_VARLEN = AttentionBackend("torch_varlen", _refusal, _attend)
