"""Only the states that are read need the last feed-forward.

Scores are read at the last token of each response, and in the last layer nothing but attention looks from one token to
another. So the feed-forward of that layer runs on the last tokens of the segments alone: of a packed row, some three
tokens in a pair. The state of every other token leaves the layer without it, and nobody reads them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from xrlhf.models.loading import decoder_layers
from xrlhf.structures import SegmentLayout

__all__ = ["ShortLastLayer", "read_index", "shortened_module"]

_FEED_FORWARDS = ("mlp", "feed_forward")
"""What it is called: in nearly every family of transformers, and in InternLM2."""


def read_index(segments: SegmentLayout, device: torch.device) -> Tensor:
    """(S,) int64, the last token of every segment."""
    return torch.tensor(segments.stop, device=device) - 1


class ShortLastLayer:
    """Hooks in the last layer, which act in calls that name the tokens to be read (the keyword ``read_index``).

    Args:
        model: A model whose layers have a feed-forward called ``mlp`` or ``feed_forward``; any other is left as it is.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._index: Tensor | None = None
        self._num_tokens = 0
        self._handles: list[RemovableHandle] = []
        layers = decoder_layers(model)
        parts = list(layers[-1].children()) if layers else []
        attention = next((part for part in parts if "Attention" in type(part).__name__), None)
        feed_forward = next(
            (getattr(layers[-1], name) for name in _FEED_FORWARDS if layers and hasattr(layers[-1], name)), None
        )
        if attention is not None and isinstance(feed_forward, nn.Module):
            self._handles = [
                # Attention comes before it, and is called again, with the same keywords, where activations are
                # recomputed; the layer itself is not.
                attention.register_forward_pre_hook(self._note, with_kwargs=True),
                feed_forward.register_forward_pre_hook(self._gather),
                feed_forward.register_forward_hook(self._scatter),
            ]

    def __bool__(self) -> bool:
        return bool(self._handles)

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _note(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._index = kwargs.get("read_index")

    def _gather(self, feed_forward: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._index is None:
            return None
        self._num_tokens = args[0].shape[1]
        return (args[0].index_select(1, self._index), *args[1:])

    def _scatter(self, feed_forward: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        index, self._index = self._index, None
        if index is None:
            return None
        # Experts give their routing beside the states.
        states, *more = output if isinstance(output, tuple) else (output,)
        whole = states.new_zeros(1, self._num_tokens, states.shape[-1]).index_copy(1, index, states)
        return (whole, *more) if isinstance(output, tuple) else whole


def shortened_module(model: nn.Module) -> nn.Module | None:
    """The feed-forward that runs on read tokens only; None where none does."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if getattr(hook, "__func__", None) is ShortLastLayer._gather:
                return module
    return None
