"""Segment attention spelled out: a dense mask token by token, float64, and layouts to try it on."""

from __future__ import annotations

import torch
from torch import Tensor

from xrlhf.ops.attention import AttentionRules
from xrlhf.structures import SegmentLayout

ONE_PAIR = SegmentLayout(start=(0, 2, 3), stop=(2, 3, 5), context_start=(0, 0, 0), context_stop=(0, 2, 2))
"""Prompt 0:2, responses 2:3 and 3:5."""

LAYOUTS: dict[str, list[tuple[int, list[int]]]] = {
    "pair": [(5, [3, 4])],
    "one token each": [(1, [1, 1])],
    "no prompt": [(0, [3, 2])],
    "one response": [(4, [2])],
    "several groups": [(6, [1, 5, 2]), (0, [4, 1]), (3, [2, 2, 7, 1]), (1, [1])],
    "eight responses": [(9, [3, 1, 4, 1, 5, 9, 2, 6])],
}
"""Groups by prompt length and response lengths."""


def layout_of(groups: list[tuple[int, list[int]]]) -> SegmentLayout:
    """The layout of groups given as prompt length and response lengths."""
    rows: list[tuple[int, int, int, int]] = []
    at = 0
    for prompt, responses in groups:
        begin, end = at, at + prompt
        if prompt:
            rows.append((begin, end, begin, begin))
        at = end
        for size in responses:
            rows.append((at, at + size, begin, end))
            at += size
    return SegmentLayout(*(tuple(column) for column in zip(*rows, strict=True)))


def visible(segments: SegmentLayout, window: int | None = None) -> Tensor:
    """(T, T) bool, spelled out token by token from the definitions in SegmentLayout and AttentionRules."""
    size = segments.num_tokens
    seen = torch.zeros(size, size, dtype=torch.bool)
    for s in range(len(segments)):
        context = range(segments.context_start[s], segments.context_stop[s])
        for query in range(segments.start[s], segments.stop[s]):
            conversation = [*context, *range(segments.start[s], query + 1)]
            seen[query, conversation[-(window or size) :]] = True
    return seen


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: SegmentLayout, rules: AttentionRules
) -> Tensor:
    """(T, heads, D) float64."""
    repeats = query.shape[1] // key.shape[1]
    query, key, value = (tensor.double().transpose(0, 1) for tensor in (query, key, value))
    key, value = (tensor.repeat_interleave(repeats, dim=0) for tensor in (key, value))
    scores = query @ key.transpose(1, 2) * rules.scaling
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    scores = scores.masked_fill(~visible(segments, rules.window), -torch.inf)
    if rules.sinks is not None:
        scores = torch.cat([scores, rules.sinks.double()[:, None, None].expand(-1, scores.shape[1], 1)], dim=-1)
    weights = scores.softmax(-1)[..., : scores.shape[1]]
    return (weights @ value).transpose(0, 1)


def random_inputs(
    segments: SegmentLayout, heads: int, kv_heads: int, dtype: torch.dtype, value_dim: int = 8
) -> list[Tensor]:
    """Query, key and value with gradients, each (T, heads, D)."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, 8), (kv_heads, 8), (kv_heads, value_dim)]
    return [
        torch.randn(segments.num_tokens, n, dim, generator=generator, dtype=dtype).requires_grad_() for n, dim in shapes
    ]
