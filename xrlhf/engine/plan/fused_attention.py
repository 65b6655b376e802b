"""What a fused attention kernel holds, for plans of devices that have one, made on machines that have none.

Such a kernel (FlashAttention, Dao et al., arXiv 2205.14135, and its kin) keeps queries, keys, values, the output and
one number for each query and head, and no scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from xrlhf.ops.attention.varlen import KeyGather, varlen_layout
from xrlhf.structures import SegmentLayout

__all__ = ["plan_fused_attention"]

_NAME = "xrlhf_planned"


class _FusedAttention(torch.autograd.Function):
    """Shapes in, shapes out: query (..., heads, D), key and value with heads of their own and any number of rows."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _planned_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: SegmentLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """In the place of what ``transformers`` calls; tensors as it gives them, (rows, heads, tokens, D)."""
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    q, k, v = (tensor.transpose(1, 2).to(dtype).contiguous() for tensor in (query, key, value))
    if segments is None:
        return _FusedAttention.apply(q, k, v), None
    # As the packed kernels get them: the keys of a prompt repeated for each of its responses.
    index = varlen_layout(segments, query.device).key_index
    gathered = (KeyGather.apply(tensor[0], index) for tensor in (k, v))
    return _FusedAttention.apply(q[0], *gathered)[None], None


def plan_fused_attention(model: PreTrainedModel) -> None:
    """Let a model that is known by its shapes alone attend as a fused kernel would, where its attention can be set."""
    if not getattr(model, "_supports_attention_backend", False):
        return
    AttentionInterface.register(_NAME, _planned_attention)
    model.set_attn_implementation(_NAME)
