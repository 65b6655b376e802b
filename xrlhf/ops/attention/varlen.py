"""Segment attention for kernels that take many sequences of different lengths in one call.

Such a kernel aligns queries and keys at their ends: with causal masking, the last query of a sequence sees all its
keys. So every segment becomes one sequence whose keys are its context followed by its own, and prompt and responses
need no mask of their own. The keys of a prompt are repeated for each of its responses; its tokens are computed once
all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xrlhf.structures import SegmentLayout

__all__ = ["KeyGather", "VarlenLayout", "varlen_layout"]


@dataclass(frozen=True)
class VarlenLayout:
    """A row as sequences: one per segment.

    Args:
        query_ends: (S + 1,) int32, 0 and the end of every segment's queries.
        key_ends: (S + 1,) int32, 0 and the end of every segment's keys in the gathered row.
        longest_query: Most queries of a sequence.
        longest_key: Most keys of a sequence.
        key_index: (gathered keys,) int64, the token each gathered key is of.
    """

    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int
    key_index: Tensor


@lru_cache(maxsize=4)
def varlen_layout(segments: SegmentLayout, device: torch.device) -> VarlenLayout:
    """The layout on ``device``. Kept for the next layer: every layer of a model asks for the same."""
    start, stop, context_start, context_stop = (
        np.asarray(column, dtype=np.int64)
        for column in (segments.start, segments.stop, segments.context_start, segments.context_stop)
    )
    num_queries = stop - start
    num_keys = num_queries + context_stop - context_start
    ranges = zip(context_start, context_stop, start, stop, strict=True)
    index = np.concatenate([np.arange(a, b) for c0, c1, s0, s1 in ranges for a, b in ((c0, c1), (s0, s1))])

    def ends(sizes: np.ndarray) -> Tensor:
        return torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)).to(device)

    return VarlenLayout(
        query_ends=ends(num_queries),
        key_ends=ends(num_keys),
        longest_query=int(num_queries.max()),
        longest_key=int(num_keys.max()),
        key_index=torch.from_numpy(index).to(device),
    )


class KeyGather(torch.autograd.Function):
    """Rows of a (T, heads, D) tensor by index.

    The gradients of a key that many responses share are summed in float32: in bfloat16 the sum over a large group
    would lose what each adds.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape, ctx.dtype = tensor.shape, tensor.dtype
        return tensor.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        exact = torch.promote_types(ctx.dtype, torch.float32)
        total = torch.zeros(ctx.shape, dtype=exact, device=grad.device)
        return total.index_add_(0, index, grad.to(exact)).to(ctx.dtype), None
