"""Segment attention as one call of torch's scaled_dot_product_attention per segment: for devices with fused kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from xrlhf.ops.attention.rules import AttentionBackend, AttentionRules
from xrlhf.structures import SegmentLayout

__all__ = ["SDPA"]


def _refusal(query: Tensor, segments: SegmentLayout, rules: AttentionRules) -> str | None:
    if rules.window is not None:
        return "has no attention window"
    if rules.softcap is not None:
        return "does not cap scores"
    if rules.sinks is not None:
        return "has no attention sinks"
    return None


def _attend(query: Tensor, key: Tensor, value: Tensor, segments: SegmentLayout, rules: AttentionRules) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    bounds = list(zip(segments.start, segments.stop, strict=True))
    sizes = [stop - start for start, stop in bounds]
    # One split and one concatenation: slicing per segment would cost a row-sized gradient for every slice.
    rows = (tensor.transpose(0, 1)[None].split(sizes, dim=2) for tensor in (query, key, value))
    contexts: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    outputs: list[Tensor] = []
    for s, (q, k, v) in enumerate(zip(*rows, strict=True)):
        seen = (segments.context_start[s], segments.context_stop[s])
        if seen[0] == seen[1]:
            contexts[bounds[s]] = (k, v)
            mask = None
        else:
            context_keys, context_values = contexts[seen]
            before = context_keys.shape[2]
            mask = torch.ones(sizes[s], before + sizes[s], dtype=torch.bool, device=q.device).tril(before)
            k, v = torch.cat([context_keys, k], dim=2), torch.cat([context_values, v], dim=2)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=rules.scaling, enable_gqa=grouped
        )
        outputs.append(out)
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)


SDPA = AttentionBackend("sdpa", _refusal, _attend)
