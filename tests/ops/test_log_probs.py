"""Log-probabilities of chosen tokens against log_softmax over the whole vocabulary."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from xrlhf.ops import log_probs
from xrlhf.ops.log_probs import chosen_log_probs, token_entropies

N, H, V = 7, 5, 11


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(V, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(0, V, (N,), generator=generator)


def plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, chosen: Tensor, scale: float, cap: float | None
) -> Tensor:
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logits = logits * scale
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits.log_softmax(dim=1).gather(1, chosen.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("chunk_bytes", [1, 3 * 4 * V, 1 << 26])
@pytest.mark.parametrize("kept_bytes", [0, 1 << 27])
@pytest.mark.parametrize(
    "options", [{}, {"scale": 0.5}, {"softcap": 2.0}, {"scale": 1.5, "softcap": 3.0}], ids=lambda o: "-".join(o)
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_values_and_gradients(
    chunk_bytes: int, kept_bytes: int, options: dict[str, Any], has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token at a time, three at a time, all at once; logits computed once and twice."""
    monkeypatch.setattr(log_probs, "_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(log_probs, "_KEPT_BYTES", kept_bytes)
    hidden, weight, bias, chosen = tensors(torch.float32)
    wanted = [t.detach().clone().requires_grad_() for t in (hidden, weight, bias)]
    upstream = torch.linspace(-1, 2, N)
    found = chosen_log_probs(hidden, weight, chosen, bias=bias if has_bias else None, **options)
    expected = plain(
        wanted[0],
        wanted[1],
        wanted[2] if has_bias else None,
        chosen,
        options.get("scale", 1.0),
        options.get("softcap"),
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for ours, theirs in zip((hidden, weight, bias)[: 2 + has_bias], wanted, strict=False):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_two_tokens_by_hand() -> None:
    """Logits (0, ln 3): probabilities 1/4 and 3/4; the gradient of log p[0] on the logits is (3/4, -3/4)."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [torch.tensor(3.0).log()]], requires_grad=True)
    found = chosen_log_probs(hidden, weight, torch.tensor([0]))
    assert found.item() == pytest.approx(torch.tensor(0.25).log().item())
    found.backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([[0.75], [-0.75]]))


def test_frozen_weights_get_no_gradient() -> None:
    hidden, weight, _, chosen = tensors(torch.float32)
    frozen = weight.detach()
    chosen_log_probs(hidden, frozen, chosen).sum().backward()
    assert frozen.grad is None
    assert hidden.grad is not None


def test_half_precision_rounds_products_and_nothing_else() -> None:
    hidden, weight, _, chosen = tensors(torch.float32)
    rounded = (hidden.bfloat16() @ weight.bfloat16().T).float()
    expected = rounded.log_softmax(dim=1).gather(1, chosen.unsqueeze(1)).squeeze(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chosen_log_probs(hidden, weight, chosen, dtype=torch.bfloat16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_no_token() -> None:
    hidden, weight, _, _ = tensors(torch.float32)
    found = chosen_log_probs(hidden[:0], weight, torch.empty(0, dtype=torch.int64))
    assert found.shape == (0,)
    found.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_entropies_of_the_whole_distribution() -> None:
    """Against plain softmax, with bias, scale and cap, and their gradients; two equal logits have ln 2."""
    torch.manual_seed(0)
    hidden = torch.randn(5, 4, requires_grad=True)
    weight, bias = torch.randn(7, 4, requires_grad=True), torch.randn(7)
    found = token_entropies(hidden, weight, bias=bias, scale=0.5, softcap=3.0)
    log_probs = (3.0 * torch.tanh(0.5 * (hidden @ weight.T + bias) / 3.0)).log_softmax(1)
    expected = -(log_probs.exp() * log_probs).sum(1)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found.square().sum(), (hidden, weight))
    for mine, other in zip(gradients, torch.autograd.grad(expected.square().sum(), (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(token_entropies(torch.zeros(1, 4), weight[:2]), torch.full((1,), math.log(2)))
    assert token_entropies(hidden[:0], weight).shape == (0,)
