"""Log-probabilities of chosen tokens, without the logits of the whole vocabulary for all of them at once.

Logits are what is largest in training a language model: 4,096 tokens over 128,000 entries are 2 GiB in float32, and a
softmax with its gradient holds them several times. Here they are computed a chunk of tokens at a time, and computed
again in the backward pass unless they are small enough to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

__all__ = ["chosen_log_probs", "most_bytes_held", "token_entropies"]

_CHUNK_BYTES = 1 << 26
"""Most bytes of one chunk's float32 logits."""

_KEPT_BYTES = 1 << 27
"""Most bytes of probabilities kept for the backward pass; beyond that logits are computed twice."""


def chosen_log_probs(
    hidden: Tensor,
    weight: Tensor,
    chosen: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """log softmax(logits)[chosen] with logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap).

    Args:
        hidden: (N, H).
        weight: (V, H), the output layer's.
        chosen: (N,) int64, the token whose probability is asked for.
        bias: (V,), or None.
        scale: What the model multiplies its logits with.
        softcap: What it caps them at; None for no cap.
        dtype: Type of the matrix products; everything else is in float32.

    Returns:
        (N,) float32.
    """
    return _ChosenLogProbs.apply(hidden, weight, bias, chosen, scale, softcap, dtype)


def most_bytes_held(num_tokens: int, vocab_size: int) -> int:
    """About the most bytes that :func:`chosen_log_probs` and its gradient hold at once beside weights and gradients.

    Args:
        num_tokens: N.
        vocab_size: V.
    """
    whole = 4 * num_tokens * vocab_size
    # Logits of a chunk and their gradient, beside what is kept of all.
    return (whole if whole <= _KEPT_BYTES else 0) + 2 * min(whole, _CHUNK_BYTES)


def token_entropies(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Entropy of the distribution over the whole vocabulary behind each state, in nats.

    Args:
        hidden: (N, H).
        weight: (V, H), the output layer's.
        bias: As in :func:`chosen_log_probs`, like all that follow.
        scale: As there.
        softcap: As there.
        dtype: As there.

    Returns:
        (N,) float32; logits are computed again in the backward pass.
    """

    def entropy_of(states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            logits = _logits(states, weight, bias, scale, dtype)
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            log_probs = logits.log_softmax(dim=1)
            return -(log_probs.exp() * log_probs).sum(dim=1)

    found = [checkpoint(entropy_of, hidden[part], use_reentrant=False) for part in _chunks(hidden, weight)]
    return torch.cat(found) if found else hidden.new_zeros(0, dtype=torch.float32)


class _ChosenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        chosen: Tensor,
        scale: float,
        softcap: float | None,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.scale, ctx.softcap, ctx.dtype = scale, softcap, dtype
        needs_grad = any(ctx.needs_input_grad[:3])
        keeps = needs_grad and softcap is None and hidden.shape[0] * weight.shape[0] * 4 <= _KEPT_BYTES
        result = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        log_norm = torch.empty_like(result)
        kept: list[Tensor] = []
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _chunks(hidden, weight):
                logits = _logits(hidden[part], weight, bias, scale, dtype)
                if softcap is not None:
                    logits = torch.tanh(logits / softcap) * softcap
                log_norm[part] = torch.logsumexp(logits, dim=1)
                result[part] = logits.gather(1, chosen[part].unsqueeze(1)).squeeze(1) - log_norm[part]
                if keeps:
                    kept.append(logits.sub_(log_norm[part].unsqueeze(1)).exp_())
        ctx.save_for_backward(hidden, weight, bias, chosen, log_norm, *kept)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, chosen, log_norm, *kept = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.empty_like(hidden) if needs_hidden else None
        of_weight = torch.zeros_like(weight) if needs_weight else None
        of_bias = torch.zeros_like(bias) if needs_bias and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            for number, part in enumerate(_chunks(hidden, weight)):
                slope: Tensor | None = None
                if kept:
                    of_logits = kept[number].neg()
                else:
                    logits = _logits(hidden[part], weight, bias, ctx.scale, ctx.dtype)
                    if ctx.softcap is not None:
                        capped = torch.tanh(logits / ctx.softcap)
                        slope = 1 - capped.square()
                        logits = capped * ctx.softcap
                    of_logits = logits.sub_(log_norm[part].unsqueeze(1)).exp_().neg_()
                # d log p[chosen] / d logits = one_hot(chosen) - p
                of_logits.scatter_add_(1, chosen[part].unsqueeze(1), of_logits.new_ones(len(of_logits), 1))
                of_logits.mul_(gradient[part].unsqueeze(1) * ctx.scale)
                if slope is not None:
                    of_logits.mul_(slope)
                products = of_logits.to(ctx.dtype)
                if of_hidden is not None:
                    of_hidden[part] = (products @ weight.to(ctx.dtype)).to(hidden.dtype)
                if of_weight is not None:
                    of_weight += products.T @ hidden[part].to(ctx.dtype)
                if of_bias is not None:
                    of_bias += of_logits.sum(dim=0)
        return of_hidden, of_weight, of_bias, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    """(n, V) float32, not yet capped."""
    logits = (hidden.to(dtype) @ weight.to(dtype).T).float()
    if bias is not None:
        logits += bias.float()
    return logits if scale == 1.0 else logits.mul_(scale)


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    length = max(1, _CHUNK_BYTES // (4 * weight.shape[0]))
    return (slice(start, start + length) for start in range(0, hidden.shape[0], length))
