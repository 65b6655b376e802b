"""Segment attention by torch's flex_attention: one compiled kernel for windows, soft caps and sinks on GPUs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xrlhf.ops.attention.rules import AttentionBackend, AttentionRules
from xrlhf.structures import SegmentLayout

__all__ = ["FLEX"]


def _refusal(query: Tensor, segments: SegmentLayout, rules: AttentionRules) -> str | None:
    if query.device.type != "cuda":
        return f"trains on CUDA, not on {query.device.type}"
    if rules.sinks is not None and not hasattr(import_module("torch.nn.attention.flex_attention"), "AuxRequest"):
        return f"has attention sinks from torch 2.9 on, this is {torch.__version__}"
    return None


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _per_token(segments: SegmentLayout, device: torch.device) -> dict[str, Tensor]:
    """For every token: where its segment starts, what its context is, and its position in its conversation."""
    sizes = np.asarray(segments.stop) - np.asarray(segments.start)
    columns = {
        "start": np.repeat(segments.start, sizes),
        "context_start": np.repeat(segments.context_start, sizes),
        "context_stop": np.repeat(segments.context_stop, sizes),
    }
    num_context = columns["context_stop"] - columns["context_start"]
    columns["position"] = np.arange(segments.num_tokens) - columns["start"] + num_context
    return {name: torch.from_numpy(column.astype(np.int32)).to(device) for name, column in columns.items()}


@lru_cache(maxsize=4)
def _block_mask(segments: SegmentLayout, window: int | None, device: torch.device) -> Any:
    """Who sees whom. Kept for the next layer: every layer of a model asks for the same."""
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = _per_token(segments, device)
    start, position = tokens["start"], tokens["position"]
    context_start, context_stop = tokens["context_start"], tokens["context_stop"]

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_context = (context_start[query] <= key) & (key < context_stop[query])
        seen = in_context | ((start[query] <= key) & (key <= query))
        return seen if window is None else seen & (position[query] - position[key] < window)

    size = segments.num_tokens
    return create_block_mask(visible, None, None, size, size, device=str(device))


def _attend(query: Tensor, key: Tensor, value: Tensor, segments: SegmentLayout, rules: AttentionRules) -> Tensor:
    return attend_with(_compiled(), query, key, value, segments, rules)


def attend_with(
    flex_attention: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: SegmentLayout,
    rules: AttentionRules,
) -> Tensor:
    """The same through a given ``flex_attention``, compiled or not."""
    softcap = rules.softcap

    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert softcap is not None
        return torch.tanh(score / softcap) * softcap

    options: dict[str, Any] = {}
    if rules.sinks is not None:
        from torch.nn.attention.flex_attention import AuxRequest

        options["return_aux"] = AuxRequest(lse=True)
    out = flex_attention(
        *(tensor.transpose(0, 1)[None] for tensor in (query, key, value)),
        score_mod=None if softcap is None else capped,
        block_mask=_block_mask(segments, rules.window, query.device),
        scale=rules.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        **options,
    )
    if rules.sinks is not None:
        # A sink takes its share of the softmax and adds no value.
        out, auxiliary = out
        share = torch.sigmoid(auxiliary.lse - rules.sinks.to(auxiliary.lse.dtype)[None, :, None])
        out = out * share[..., None].to(out.dtype)
    return out[0].transpose(0, 1)


FLEX = AttentionBackend("flex", _refusal, _attend)
