"""Which backend computes, and the function that ``transformers`` calls."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from xrlhf.errors import ConfigError, ModelError
from xrlhf.ops.attention.blockwise import BLOCKWISE
from xrlhf.ops.attention.flash_attn import FLASH_ATTN
from xrlhf.ops.attention.flex import FLEX
from xrlhf.ops.attention.rules import AttentionBackend, AttentionRules, longest_conversation
from xrlhf.ops.attention.sdpa import SDPA
from xrlhf.ops.attention.torch_varlen import TORCH_VARLEN
from xrlhf.structures import SegmentLayout

__all__ = ["ATTENTION_NAME", "BACKENDS", "register_segment_attention", "segment_attention"]

BACKENDS = {backend.name: backend for backend in (FLASH_ATTN, TORCH_VARLEN, FLEX, SDPA, BLOCKWISE)}
"""All backends by name."""

_PREFERRED = {
    "cuda": (FLASH_ATTN, TORCH_VARLEN, FLEX, SDPA),
    "xpu": (SDPA, BLOCKWISE),
}
ATTENTION_NAME = "xrlhf_segments"
"""What ``transformers`` knows segment attention by, where the backend is chosen for each call."""


# Its layout is different in every batch, and a compiled layer would be compiled anew for each.
@torch.compiler.disable
def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: SegmentLayout,
    rules: AttentionRules,
    *,
    backend: str = "auto",
) -> Tensor:
    """Attention over one packed row.

    Args:
        query: (T, heads, D).
        key: (T, key_value_heads, D), heads a multiple of key_value_heads.
        value: (T, key_value_heads, D of the values).
        segments: Who attends to whom; covers the T tokens.
        rules: How scores become weights.
        backend: A name of :data:`BACKENDS`, or ``"auto"`` for the best one that can compute this here.

    Returns:
        (T, heads, D of the values), in the type of the query.

    Raises:
        ValueError: The layout does not cover the row, or a context is no earlier prompt.
        ModelError: The named backend cannot compute this here; the message says why.
    """
    if not len(query) == len(key) == len(value) == segments.num_tokens:
        raise ValueError(f"segments cover {segments.num_tokens} tokens, got {len(query)} queries and {len(key)} keys")
    _check_contexts(segments)
    if rules.window is not None and rules.window >= longest_conversation(segments):
        rules = replace(rules, window=None)
    return _choose(backend, query, segments, rules).attend(query, key, value, segments, rules)


@lru_cache(maxsize=4)
def _check_contexts(segments: SegmentLayout) -> None:
    """Once for all layers, which ask with the same layout."""
    prompts = set()
    columns = (segments.start, segments.stop, segments.context_start, segments.context_stop)
    for s, (start, stop, context_start, context_stop) in enumerate(zip(*columns, strict=True)):
        if context_start == context_stop:
            prompts.add((start, stop))
        elif (context_start, context_stop) not in prompts:
            raise ValueError(f"segment {s} has the context {context_start}:{context_stop}, which is no earlier prompt")


def _choose(name: str, query: Tensor, segments: SegmentLayout, rules: AttentionRules) -> AttentionBackend:
    if name != "auto":
        reason = BACKENDS[name].refusal(query, segments, rules)
        if reason is not None:
            raise ModelError(f"the attention backend {name!r} {reason}; 'auto' takes one that fits")
        return BACKENDS[name]
    for backend in _PREFERRED.get(query.device.type, ()):
        if backend.refusal(query, segments, rules) is None:
            return backend
    return BLOCKWISE


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
    *,
    backend: str,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What ``transformers`` calls: refuses whatever segment attention does not compute.

    Query (1, heads, T, D), key and value (1, key_value_heads, T, D) become (1, T, heads, D of the values).
    ``segment_calls`` collects the name of every module that comes here, for whoever must know that all layers do.
    """
    if segment_calls is not None:
        segment_calls.append(type(module).__name__)
    if segments is None:
        raise ModelError("segment attention needs packed batches: call the model through xrlhf, or set 'sdpa' on it")
    if len(query) != 1:
        raise ValueError(f"segment attention takes one packed row, got {len(query)}")
    if dropout:
        raise ModelError(
            f"{type(module).__name__} drops {dropout:g} of its attention, which packed attention does not: "
            "set its attention dropout to 0"
        )
    if is_causal is False or (is_causal is None and getattr(module, "is_causal", True) is False):
        raise ModelError(f"{type(module).__name__} also attends to later tokens: packed attention needs a causal model")
    if position_bias is not None:
        raise ModelError(f"{type(module).__name__} needs position biases, which packed attention does not compute")
    rules = AttentionRules(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    device = query.device.type
    # Norms of queries and keys leave them in float32 where autocast computes the values in a smaller type.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    q, k, v = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    return segment_attention(q, k, v, segments, rules, backend=backend)[None].contiguous(), None


def register_segment_attention(backend: str = "auto") -> str:
    """Make segment attention known to ``transformers`` (doing so again changes nothing) and return its name there.

    ``transformers`` hands the keyword ``segments`` that a model is called with down to every layer.

    Raises:
        ConfigError: No backend has that name.
    """
    from transformers import AttentionInterface

    if backend != "auto" and backend not in BACKENDS:
        raise ConfigError(f"no attention backend is called {backend!r}: choose 'auto' or one of {', '.join(BACKENDS)}")
    # By number: transformers treats whatever has "flash" in its name as a kernel of its own.
    name = ATTENTION_NAME if backend == "auto" else f"{ATTENTION_NAME}_{list(BACKENDS).index(backend)}"
    AttentionInterface.register(name, partial(_registered_attention, backend=backend))
    return name
