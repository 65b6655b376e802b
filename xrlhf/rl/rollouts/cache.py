"""Keys and values of the tokens so far, in memory that grows ahead of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["bytes_per_token", "growing_cache"]

_ROOM = 64


class _GrowingLayer(CacheLayerMixin):
    """Keys and values of one layer, with room for tokens to come.

    The dynamic layer of transformers copies all it has for every token; this one writes each token once, and copies
    when its room is used up or rows are taken out. A sliding window is left to the mask, which knows it.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states, value_states
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before, self.length = self.length, self.length + key_states.shape[-2]
        if not self.is_initialized:
            # The prompts: kept as they are until the first answers are written behind them.
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        assert self.keys is not None
        assert self.values is not None
        if self.length > self.keys.shape[-2]:
            self.keys = _with_room(self.keys[..., :before, :], self.length)
            self.values = _with_room(self.values[..., :before, :], self.length)
        self.keys[..., before : self.length, :] = key_states
        self.values[..., before : self.length, :] = value_states
        return self.keys[..., : self.length, :], self.values[..., : self.length, :]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows, each as often as it is named."""
        if not self.is_initialized:
            return
        assert self.keys is not None
        assert self.values is not None
        self.keys = _with_room(self.keys[..., : self.length, :].index_select(0, beam_idx), self.length)
        self.values = _with_room(self.values[..., : self.length, :].index_select(0, beam_idx), self.length)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


def _with_room(states: Tensor, length: int) -> Tensor:
    """``states`` (rows, heads, tokens, size) at the beginning of memory for more than ``length`` tokens."""
    rows, heads, tokens, size = states.shape
    grown = states.new_empty(rows, heads, length + max(_ROOM, length // 4), size)
    grown[..., :tokens, :] = states
    return grown


def growing_cache(config: PreTrainedConfig) -> Cache:
    """An empty cache for a language model.

    Where the model has layers of attention alone, all grow ahead; else it is what transformers gives such models.
    """
    usual = DynamicCache(config=config)
    if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in usual.layers):
        return Cache(layers=[_GrowingLayer() for _ in usual.layers])
    return usual


def bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """About what a cache keeps of each token of a row.

    Args:
        config: Of the model.
        dtype: Type of keys and values.
    """
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None) or 1
    size = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 1024) // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    layers = getattr(text, "num_hidden_layers", None) or 1
    return 2 * layers * kept * size * torch.empty((), dtype=dtype).element_size()
