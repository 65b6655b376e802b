"""Tokens drawn from logits with random numbers that belong to the answer, not to its place in a batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xrlhf.models.generation import Sampling

__all__ = ["Drawn", "draw", "uniforms_of"]

_WORD = (1 << 32) - 1
_BITS = 24


def uniforms_of(key: int, index: int, number: int, count: int) -> np.ndarray:
    """(count,) float32 in [0, 1): the random numbers of one answer, in the order of its tokens.

    The same on every machine: the bits of numpy's PCG64, whose sequence numpy promises to keep.

    Args:
        key: What the caller seeds with.
        index: The prompt's position in the whole set.
        number: The answer's number among those to its prompt.
        count: How many.
    """
    words = [key & _WORD, key >> 32 & _WORD, index & _WORD, index >> 32 & _WORD, number]
    raw = np.random.PCG64(np.random.SeedSequence(words)).random_raw(count)
    # So many bits fit into a float32, and 1 is never reached.
    return (raw >> np.uint64(64 - _BITS)).astype(np.float32) * np.float32(2.0**-_BITS)


class Drawn(NamedTuple):
    """Tokens of one step.

    Args:
        tokens: (R,) int64.
        logps: (R,) float32, their log-probabilities before anything changed the distribution.
    """

    tokens: Tensor
    logps: Tensor


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling, history: Tensor | None = None) -> Drawn:
    """One token for each row, by the inverse of the cumulative distribution.

    Temperature, top-k and top-p change the distribution in that order, as in transformers (generation/utils.py), after
    the penalty on repetitions.

    Args:
        logits: (R, V).
        uniforms: (R,) float32 in [0, 1), which decide.
        sampling: How tokens are drawn.
        history: (R, any) int64, the tokens that a penalty on repetitions counts; None where there is none.
    """
    logits = logits.float()
    changed = logits
    if history is not None and sampling.repetition_penalty != 1.0:
        said = logits.gather(1, history)
        penalty = sampling.repetition_penalty
        changed = logits.scatter(1, history, torch.where(said < 0, said * penalty, said / penalty))
    if sampling.greedy:
        tokens = changed.argmax(dim=1)
        return Drawn(tokens, _chosen(logits, tokens) - logits.logsumexp(dim=1))
    narrowed = _narrowed(changed, sampling)
    most = narrowed.amax(dim=1, keepdim=True)
    cumulative = (narrowed - most).exp_().cumsum_(dim=1)
    tokens = _inverse(cumulative, uniforms)
    if narrowed is logits:
        # Nothing was changed, so what normalises the draw is there already.
        return Drawn(tokens, _chosen(logits, tokens) - most.squeeze(1) - cumulative[:, -1].log())
    # Sums made in parallel need not rise evenly, so that rounding could point at what was ruled out.
    tokens = torch.where(_chosen(narrowed, tokens) == -torch.inf, narrowed.argmax(dim=1), tokens)
    return Drawn(tokens, _chosen(logits, tokens) - logits.logsumexp(dim=1))


def _chosen(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(1, tokens[:, None]).squeeze(1)


def _narrowed(logits: Tensor, sampling: Sampling) -> Tensor:
    """(R, V) logits after temperature, top-k and top-p, minus infinity for what is ruled out; the same ones where
    nothing changes."""
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[1]:
        least = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, places = logits.sort(dim=1, descending=True)
        probabilities = ordered.softmax(dim=1)
        # A token stays where those before it do not add up to top_p; the likeliest always does.
        beyond = probabilities.cumsum(dim=1) - probabilities >= sampling.top_p
        beyond[:, 0] = False
        logits = logits.masked_fill(beyond.scatter(1, places, beyond), -torch.inf)
    return logits


def _inverse(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    """(R,) int64: the first token up to which more than the uniform share of all weight lies.

    Args:
        cumulative: (R, V), sums of the weights of all tokens up to each.
        uniforms: (R,) in [0, 1).
    """
    total = cumulative[:, -1]
    # Rounding must not carry the point up to the total, beyond which nothing lies.
    points = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, points[:, None], right=True).squeeze(1)
    # Beyond the end where the weights are no numbers, which the log-probabilities then show.
    return tokens.clamp_(max=cumulative.shape[1] - 1)
