"""Segment attention from plain matrix products, block by block: the backend of CPUs, and the one that computes all.

Queries are taken in blocks of some hundred tokens. A block sees whole ranges of keys, so that every product is one
dense batched matrix product over exactly the keys that matter, and the work is that of the visible part of the
scores, rounded up to blocks. All of it is computed in float32: on CPUs that costs next to nothing at these sizes, and
under bfloat16 autocast it is the more exact for it.

The probabilities of a block are kept for the backward pass where they are small, and computed again where they are
not, so that memory grows with the tokens of a row and not with their squares (Dao et al., FlashAttention,
arXiv:2205.14135).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xrlhf.ops.attention.rules import AttentionBackend, AttentionRules
from xrlhf.structures import SegmentLayout

__all__ = ["BLOCKWISE"]

_BLOCK = 160
_KEYS_KEPT = 512


@dataclass(frozen=True)
class _Block:
    """Queries ``start:stop``, which see keys of ``context_start:context_stop`` and ``own_start:stop``.

    ``mask`` is added to the scores of the last keys: (queries, queries), or (queries, keys) where a window hides some.
    """

    start: int
    stop: int
    context_start: int
    context_stop: int
    own_start: int
    mask: Tensor

    @property
    def num_keys(self) -> int:
        return self.context_stop - self.context_start + self.stop - self.own_start

    def keys(self, tensor: Tensor) -> Tensor:
        """The keys (or values) of the block, of a (heads, T, D) tensor."""
        own = tensor[:, self.own_start : self.stop]
        if self.context_start == self.context_stop:
            return own
        return torch.cat([tensor[:, self.context_start : self.context_stop], own], dim=1)

    def add_to_keys(self, total: Tensor, part: Tensor) -> None:
        """Add the block's (heads, keys, D) to its places in a (heads, T, D) tensor."""
        num_context = self.context_stop - self.context_start
        if num_context:
            total[:, self.context_start : self.context_stop] += part[:, :num_context]
        total[:, self.own_start : self.stop] += part[:, num_context:]


@lru_cache(maxsize=4)
def _blocks_of(segments: SegmentLayout, window: int | None, device: torch.device) -> tuple[_Block, ...]:
    """All blocks of a row. Kept for the next layer: every layer of a model asks for the same."""
    blocks: list[_Block] = []
    s = 0
    while s < len(segments):
        context = (segments.context_start[s], segments.context_stop[s])
        start, stop = segments.start[s], segments.stop[s]
        following = s + 1
        if stop - start > _BLOCK:
            num_parts = -(-(stop - start) // _BLOCK)
            cuts = [start + (stop - start) * part // num_parts for part in range(num_parts + 1)]
            for begin, end in itertools.pairwise(cuts):
                blocks.append(_block([(start, begin, end)], context, window, device))
        else:
            # Responses of one prompt lie side by side: as many of them share a block as fit.
            while (
                following < len(segments)
                and context[0] < context[1]
                and (segments.context_start[following], segments.context_stop[following]) == context
                and segments.stop[following] - start <= _BLOCK
            ):
                following += 1
            spans = [(segments.start[i], segments.start[i], segments.stop[i]) for i in range(s, following)]
            blocks.append(_block(spans, context, window, device))
        s = following
    return tuple(blocks)


def _block(
    spans: list[tuple[int, int, int]], context: tuple[int, int], window: int | None, device: torch.device
) -> _Block:
    """The block of some spans (start of the segment, first query, end of the queries) that share a context."""
    segment_start, start, stop = spans[0][0], spans[0][1], spans[-1][2]
    context_start, context_stop = context
    num_context = context_stop - context_start
    offsets = torch.arange(stop - start)
    if window is not None:
        # Whatever lies too far back for the first query lies too far back for all.
        first_position = num_context + start - segment_start
        context_start = min(context_stop, context_start + max(0, first_position - window + 1))
        segment_start = max(segment_start, start - window + 1)
    visible = torch.zeros(stop - start, stop - start, dtype=torch.bool)
    for _, begin, end in spans:
        visible[begin - start : end - start, begin - start : end - start] = True
    visible &= offsets[:, None] >= offsets[None, :]
    if window is not None:
        own = torch.arange(segment_start, stop) - start
        back = offsets[:, None] - own[None, :]
        earlier = torch.ones(stop - start, start - segment_start, dtype=torch.bool)
        # Positions restart at the context's end with every span.
        position = torch.cat([num_context + torch.arange(begin - at, end - at) for at, begin, end in spans])
        far = position[:, None] - (torch.arange(context_start, context_stop) - context[0])[None, :]
        visible = torch.cat([far < window, torch.cat([earlier, visible], dim=1) & (back < window)], dim=1)
    mask = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf).to(device)
    if context_stop == segment_start:
        return _Block(start, stop, context_start, context_start, context_start, mask)
    return _Block(start, stop, context_start, context_stop, segment_start, mask)


def _scores(query: Tensor, keys: Tensor, softcap: float | None) -> Tensor:
    """(key_value_heads, repeats * queries, keys): of every key of a block, those to be hidden included.

    Takes the scaled query (key_value_heads, repeats, queries, D) and the keys (key_value_heads, keys, D) of the block.
    """
    scores = torch.bmm(query.flatten(1, 2), keys.transpose(1, 2))
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)


def _probabilities(scores: Tensor, block: _Block, repeats: int, sinks: Tensor | None) -> Tensor:
    """The weight of every key, in the shape of the scores, which are used up; nothing is left of the sinks but their
    share. Sinks are (key_value_heads, repeats).
    """
    num_heads, num_queries = len(scores), block.stop - block.start
    by_query = scores.view(num_heads, repeats, num_queries, -1)
    by_query[..., by_query.shape[-1] - block.mask.shape[1] :] += block.mask
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    sink = sinks[:, :, None].expand(-1, -1, num_queries).reshape(num_heads, -1, 1)
    return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]


def _is_kept(block: _Block, softcap: float | None) -> bool:
    # With a soft cap the backward pass needs the scores, from which the probabilities follow.
    return block.num_keys <= _KEYS_KEPT and softcap is None


class _BlockwiseAttention(torch.autograd.Function):
    """Query (key_value_heads, repeats, T, D), key and value (key_value_heads, T, D), all float32 and query scaled."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        blocks: tuple[_Block, ...],
        softcap: float | None,
    ) -> Tensor:
        num_heads, repeats, num_tokens, _ = query.shape
        # Tokens outermost in memory: that is how the next layer reads them.
        out = query.new_empty(num_tokens, num_heads, repeats, value.shape[-1]).permute(1, 2, 0, 3)
        keeps = any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        for block in blocks:
            scores = _scores(query[:, :, block.start : block.stop], block.keys(key), softcap)
            weights = _probabilities(scores, block, repeats, sinks)
            summed = torch.bmm(weights, block.keys(value))
            out[:, :, block.start : block.stop] = summed.view(num_heads, repeats, block.stop - block.start, -1)
            if keeps and _is_kept(block, softcap):
                kept.append(weights)
        ctx.save_for_backward(query, key, value, sinks, *kept)
        ctx.blocks, ctx.softcap = blocks, softcap
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, *kept = ctx.saved_tensors
        num_heads, repeats, num_tokens, width = query.shape
        grad_query = query.new_empty(num_tokens, num_heads, repeats, width).permute(1, 2, 0, 3)
        grad_key = torch.zeros_like(key)
        grad_value = torch.zeros_like(value)
        grad_sinks = None if sinks is None else torch.zeros_like(sinks)
        remaining = iter(kept)
        for block in ctx.blocks:
            queries = query[:, :, block.start : block.stop]
            grad = grad_out[:, :, block.start : block.stop].flatten(1, 2)
            keys = block.keys(key)
            slope: Tensor | None = None
            if _is_kept(block, ctx.softcap):
                weights = next(remaining)
            else:
                scores = _scores(queries, keys, ctx.softcap)
                if ctx.softcap is not None:
                    slope = 1 - (scores / ctx.softcap).square_()
                weights = _probabilities(scores, block, repeats, sinks)
            block.add_to_keys(grad_value, torch.bmm(weights.transpose(1, 2), grad))
            grad_weights = torch.bmm(grad, block.keys(value).transpose(1, 2))
            if grad_sinks is not None:
                # A sink's share is what the keys leave of 1, and its value is zero.
                share = 1 - weights.sum(-1)
                pulled = (grad_weights * weights).sum(-1)
                grad_sinks -= (share * pulled).view(num_heads, repeats, -1).sum(-1)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            if slope is not None:
                grad_scores.mul_(slope)
            by_query = torch.bmm(grad_scores, keys).view(num_heads, repeats, block.stop - block.start, -1)
            grad_query[:, :, block.start : block.stop] = by_query
            block.add_to_keys(grad_key, torch.bmm(grad_scores.transpose(1, 2), queries.flatten(1, 2)))
        return grad_query, grad_key, grad_value, grad_sinks, None, None


def _refusal(query: Tensor, segments: SegmentLayout, rules: AttentionRules) -> str | None:
    return None


def _attend(query: Tensor, key: Tensor, value: Tensor, segments: SegmentLayout, rules: AttentionRules) -> Tensor:
    num_tokens, num_heads, _ = query.shape
    num_groups = key.shape[1]
    exact = torch.promote_types(query.dtype, torch.float32)
    blocks = _blocks_of(segments, rules.window, query.device)
    with torch.autocast(query.device.type, enabled=False):
        scaled = query.to(exact).view(num_tokens, num_groups, -1, query.shape[-1]).permute(1, 2, 0, 3) * rules.scaling
        out = _BlockwiseAttention.apply(
            scaled,
            key.to(exact).transpose(0, 1),
            value.to(exact).transpose(0, 1),
            None if rules.sinks is None else rules.sinks.to(exact).view(num_groups, -1),
            blocks,
            rules.softcap,
        )
    return out.permute(2, 0, 1, 3).reshape(num_tokens, num_heads, -1).to(query.dtype)


BLOCKWISE = AttentionBackend("blockwise", _refusal, _attend)
