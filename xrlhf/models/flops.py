"""How many floating-point operations training needs in matrix products: what a share of a device's rate is counted on.

Counted is what the mathematics asks for, a multiplication and an addition as two operations. Left out is what it does
not ask for: recomputing activations under gradient checkpointing, padding, filler. Left out too is what is small
beside products: norms, activations, softmax, embeddings, the score head (it reads one token of each response).
Chowdhery et al. 2022, "PaLM", arXiv 2204.02311, appendix B, count in this way and name the share model FLOPs
utilization (MFU); frozen weights and tokens that see less than the whole row are this project's addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from xrlhf.models.last_layer import shortened_module
from xrlhf.structures import SegmentLayout

__all__ = ["MatrixFlops", "attended_tokens", "matrix_flops"]

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_k", "moe_top_k")


@dataclass(frozen=True)
class MatrixFlops:
    """FLOPs of one forward and backward pass, by what they grow with.

    Args:
        per_token: In products with weights, for each token.
        per_attended_token: In attention's two products, for each token that a token attends to, itself included; by
            the window of the layers they are summed over, None for layers without one.
        per_read_token: In products with weights that only the tokens are multiplied with whose states are read.
    """

    per_token: float
    per_attended_token: dict[int | None, float]
    per_read_token: float = 0.0

    def of(self, segments: SegmentLayout, num_read: int | None = None) -> float:
        """FLOPs of one packed row, of which ``num_read`` states are read: those of the last tokens of its segments if
        None."""
        read = len(segments) if num_read is None else num_read
        in_attention = sum(flops * attended_tokens(segments, w) for w, flops in self.per_attended_token.items())
        return self.per_token * segments.num_tokens + self.per_read_token * read + in_attention


def attended_tokens(segments: SegmentLayout, window: int | None = None) -> int:
    """Tokens that the tokens of a row attend to in one layer, summed over the row.

    Args:
        segments: Who attends to whom.
        window: Most tokens that a token attends to, itself included; None for no limit.
    """
    start, stop, context_start, context_stop = (
        np.array(bounds, dtype=np.int64)
        for bounds in (segments.start, segments.stop, segments.context_start, segments.context_stop)
    )
    before = context_stop - context_start
    return int((_seen_by_first(before + stop - start, window) - _seen_by_first(before, window)).sum())


def _seen_by_first(length: np.ndarray, window: int | None) -> np.ndarray:
    """1 + 2 + ... + length, every term at most ``window``."""
    near = length if window is None else np.minimum(length, window)
    return near * (near + 1) // 2 + (length - near) * near


def matrix_flops(model: PreTrainedModel, *, forward_only: bool = False) -> MatrixFlops:
    """Count what training a model needs, or its forward pass by itself.

    A token costs two operations for every weight it is multiplied with in the forward pass, and in the backward pass
    two for the gradient of its activations and, where the weight is trained, two for the weight's. A mixture of
    experts counts the experts that a token is sent to. A pair of a token and one it attends to costs four operations
    per head and dimension forward, and eight backward.

    Args:
        model: A model with a backbone under its ``base_model_prefix``; adapters may be in its layers.
        forward_only: Leave the backward pass out.
    """
    backbone = getattr(model, model.base_model_prefix)
    config = model.config.get_text_config()
    tables = {id(module.weight) for module in backbone.modules() if isinstance(module, nn.Embedding)}
    share = _share_of_experts(config)
    short = shortened_module(backbone)
    at_read_tokens = set() if short is None else {id(weight) for weight in short.parameters()}
    # Of weights that every token meets, and of those that only tokens meet whose states are read.
    used, trained = [0.0, 0.0], [0.0, 0.0]
    for name, weight in backbone.named_parameters():
        parts = name.split(".")
        # Of a layer that is trained in full beside adapters, peft keeps the original and does not compute it.
        if weight.dim() < 2 or id(weight) in tables or "bias" in parts[-1] or "original_module" in parts:
            continue
        size = weight.numel() * (share if "experts" in parts else 1.0)
        used[id(weight) in at_read_tokens] += size
        trained[id(weight) in at_read_tokens] += size * (weight.requires_grad and not forward_only)
    # Nothing to train in the backbone: nothing to go back for.
    goes_back = not forward_only and any(weight.requires_grad for weight in backbone.parameters())
    passes = 3 if goes_back else 1
    per_pair = 2 * passes * _attention_width(config)
    in_attention: dict[int | None, float] = {}
    for window in _windows(config):
        in_attention[window] = in_attention.get(window, 0.0) + per_pair
    per_token, per_read_token = ((4 if goes_back else 2) * u + 2 * t for u, t in zip(used, trained, strict=True))
    return MatrixFlops(per_token, in_attention, per_read_token)


def _first(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(config, name, None))), None)


def _share_of_experts(config: Any) -> float:
    """The part of its experts that a token is sent to; 1 where the config does not say."""
    experts, chosen = _first(config, *_EXPERTS), _first(config, *_EXPERTS_PER_TOKEN)
    return chosen / experts if experts and chosen else 1.0


def _attention_width(config: Any) -> float:
    """Numbers per token in the queries and in the values of one layer, over all heads."""
    heads = config.num_attention_heads
    of_head = _first(config, "head_dim") or config.hidden_size / heads
    # Latent attention (DeepSeek) has heads of other sizes for scores and values, and another meaning of head_dim.
    return heads * ((_first(config, "qk_head_dim") or of_head) + (_first(config, "v_head_dim") or of_head))


def _windows(config: Any) -> list[int | None]:
    """How far back each layer with attention sees, the token itself included; None for the whole conversation."""
    kinds = _first(config, "layer_types") or ["sliding_attention"] * config.num_hidden_layers
    window = _first(config, "sliding_window")
    pairwise = [kind for kind in kinds if "attention" in kind and "linear" not in kind]
    return [window if "sliding" in kind else None for kind in pairwise]
