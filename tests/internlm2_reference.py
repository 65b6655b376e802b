"""InternLM2 worked out one conversation, head and position at a time, in float64: what the package is held against.

It shares no code with the package and reads the weights by their published names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["published_names", "reference_score", "reference_states"]


def published_names(num_layers: int, *, bias: bool = False, head: str = "v_head.weight") -> set[str]:
    """The names of all weights in a published checkpoint."""
    names = {"model.tok_embeddings.weight", "model.norm.weight", head}
    for layer in range(num_layers):
        at = f"model.layers.{layer}"
        names |= {f"{at}.attention_norm.weight", f"{at}.ffn_norm.weight"}
        names |= {f"{at}.feed_forward.{matrix}.weight" for matrix in ("w1", "w2", "w3")}
        for matrix in ("wqkv", "wo"):
            names |= {f"{at}.attention.{matrix}.{part}" for part in ("weight", *(["bias"] if bias else []))}
    return names


def reference_score(weights: Mapping[str, Tensor], config: Mapping[str, Any], ids: Sequence[int]) -> float:
    """The score of one conversation, read at its last token."""
    return float(reference_states(weights, config, ids)[-1] @ weights["v_head.weight"].double()[0])


def reference_states(weights: Mapping[str, Tensor], config: Mapping[str, Any], ids: Sequence[int]) -> Tensor:
    """(T, H) float64: what a head reads."""
    exact = {name: weight.detach().double() for name, weight in weights.items()}
    x = torch.stack([exact["model.tok_embeddings.weight"][index] for index in ids])
    for layer in range(config["num_hidden_layers"]):
        own = {
            name.removeprefix(f"model.layers.{layer}."): weight
            for name, weight in exact.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        x = x + _attention(own, config, _norm(x, own["attention_norm.weight"], config))
        h = _norm(x, own["ffn_norm.weight"], config)
        gate = h @ own["feed_forward.w1.weight"].T
        x = x + (gate * torch.sigmoid(gate) * (h @ own["feed_forward.w3.weight"].T)) @ own["feed_forward.w2.weight"].T
    return _norm(x, exact["model.norm.weight"], config)


def _norm(x: Tensor, weight: Tensor, config: Mapping[str, Any]) -> Tensor:
    return torch.stack([row / math.sqrt(float((row**2).mean()) + config["rms_norm_eps"]) * weight for row in x])


def _attention(own: Mapping[str, Tensor], config: Mapping[str, Any], h: Tensor) -> Tensor:
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size, group = config["hidden_size"] // heads, heads // kv_heads
    fused = h @ own["attention.wqkv.weight"].T + own.get("attention.wqkv.bias", 0.0)
    outputs = []
    for kv_head in range(kv_heads):
        # The rows of one key-value head: its queries, its key, its value.
        start = kv_head * (group + 2) * size
        blocks = [fused[:, start + i * size : start + (i + 1) * size] for i in range(group + 2)]
        key, value = _turned(blocks[-2], config), blocks[-1]
        for block in blocks[:-2]:
            query = _turned(block, config)
            rows = []
            for t in range(len(h)):
                scores = torch.stack([query[t] @ key[s] / math.sqrt(size) for s in range(t + 1)])
                shares = (scores - scores.max()).exp()
                rows.append((shares / shares.sum()) @ value[: t + 1])
            outputs.append(torch.stack(rows))
    return torch.cat(outputs, dim=1) @ own["attention.wo.weight"].T + own.get("attention.wo.bias", 0.0)


def _turned(block: Tensor, config: Mapping[str, Any]) -> Tensor:
    length, size = block.shape
    base, stretch = config["rope_theta"], 1.0
    scaling = config.get("rope_scaling")
    if scaling and scaling["type"] == "linear":
        stretch = scaling["factor"]
    elif scaling and length > config["max_position_embeddings"]:
        factor = scaling["factor"]
        base *= (factor * length / config["max_position_embeddings"] - (factor - 1)) ** (size / (size - 2))
    turned = block.clone()
    for position in range(length):
        for i in range(size // 2):
            angle = position / stretch / base ** (2 * i / size)
            a, b = float(block[position, i]), float(block[position, i + size // 2])
            turned[position, i] = a * math.cos(angle) - b * math.sin(angle)
            turned[position, i + size // 2] = b * math.cos(angle) + a * math.sin(angle)
    return turned
