"""Contracts of the kernels that do not run here: what is handed to them means what segment attention means.

The kernels are replaced by plain functions that follow their documentation (Dao-AILab/flash-attention,
flash_attn/flash_attn_interface.py; torch.nn.attention.varlen): sequences back to back, masks aligned at the ends of
queries and keys. Nothing here says that a kernel itself is right.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from dense_attention import LAYOUTS, ONE_PAIR, dense_attention, layout_of, random_inputs
from torch import Tensor

from xrlhf.ops.attention import AttentionRules
from xrlhf.ops.attention.flash_attn import FLASH_ATTN
from xrlhf.ops.attention.torch_varlen import TORCH_VARLEN
from xrlhf.ops.attention.varlen import KeyGather, varlen_layout


def documented_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    scale: float,
    window: tuple[int, int],
    softcap: float,
) -> Tensor:
    """Sequence by sequence: query i of n sees key j of m where -left <= j - (i + m - n) <= right, -1 for no limit."""
    repeats = query.shape[1] // key.shape[1]
    outputs = []
    for s in range(len(query_ends) - 1):
        q = query[query_ends[s] : query_ends[s + 1]].transpose(0, 1)
        k, v = (
            t[key_ends[s] : key_ends[s + 1]].transpose(0, 1).repeat_interleave(repeats, dim=0) for t in (key, value)
        )
        scores = q @ k.transpose(1, 2) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        n, m = scores.shape[1:]
        offset = torch.arange(m)[None, :] - (torch.arange(n)[:, None] + m - n)
        seen = torch.ones(n, m, dtype=torch.bool)
        if window[0] >= 0:
            seen &= offset >= -window[0]
        if window[1] >= 0:
            seen &= offset <= window[1]
        outputs.append((scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
) -> Tensor:
    assert cu_seqlens_q.dtype is cu_seqlens_k.dtype is torch.int32
    assert max_seqlen_q == cu_seqlens_q.diff().max()
    assert max_seqlen_k == cu_seqlens_k.diff().max()
    window = (window_size[0], 0 if causal else window_size[1])
    return documented_kernel(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window, softcap)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert (max_q, max_k) == (cu_seq_q.diff().max(), cu_seq_k.diff().max())
    return documented_kernel(query, key, value, cu_seq_q, cu_seq_k, scale, window_size, 0.0)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented kernels in the place of the real ones."""
    flash: Any = ModuleType("flash_attn")
    flash.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", flash)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("backend", [FLASH_ATTN, TORCH_VARLEN], ids=lambda backend: backend.name)
def test_the_call_means_segment_attention(
    backend: Any, window: int | None, kv_heads: int, groups: list[tuple[int, list[int]]]
) -> None:
    segments = layout_of(groups)
    inputs = random_inputs(segments, 4, kv_heads, torch.float64)
    rules = AttentionRules(0.6, window, softcap=2.0 if backend is FLASH_ATTN else None)
    out = backend.attend(*inputs, segments, rules)
    expected = dense_attention(*inputs, segments, rules)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad(out.square().sum(), inputs)
    for got, wanted in zip(gradients, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_the_layout_by_hand() -> None:
    """Prompt 0:2, responses 2:3 and 3:5: the keys of the responses are 0 1 2 and 0 1 3 4."""
    layout = varlen_layout(ONE_PAIR, torch.device("cpu"))
    assert layout.query_ends.tolist() == [0, 2, 3, 5]
    assert layout.key_ends.tolist() == [0, 2, 5, 9]
    assert layout.key_index.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4]
    assert (layout.longest_query, layout.longest_key) == (2, 4)


def test_gradients_of_shared_keys_are_summed_in_float32() -> None:
    """1 + 256 times 1/256 is 2; in bfloat16 1 + 1/256 rounds back to 1, so a running sum would stay there."""
    key = torch.zeros(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    gathered = KeyGather.apply(key, torch.zeros(257, dtype=torch.int64))
    upstream = torch.full((257, 1, 1), 1 / 256, dtype=torch.bfloat16)
    upstream[0] = 1
    (grad,) = torch.autograd.grad(gathered, key, upstream)
    assert grad.dtype is torch.bfloat16
    assert grad.item() == 2.0


class OnCuda:
    """As much of a CUDA query as a refusal looks at."""

    device = torch.device("cuda")

    def __init__(self, dtype: torch.dtype = torch.bfloat16, width: int = 64) -> None:
        self.dtype, self.shape = dtype, (5, 4, width)


@pytest.mark.parametrize(
    ("backend", "query", "rules", "reason"),
    [
        (FLASH_ATTN, OnCuda(), {}, None),
        (FLASH_ATTN, OnCuda(), {"softcap": 3.0, "window": 2}, None),
        (FLASH_ATTN, OnCuda(), {"sinks": torch.zeros(4)}, "has no attention sinks"),
        (FLASH_ATTN, OnCuda(torch.float32), {}, "computes in float16 or bfloat16, not float32"),
        (FLASH_ATTN, OnCuda(width=512), {}, "takes heads of at most 256 dimensions, not 512"),
        (TORCH_VARLEN, OnCuda(), {"window": 2}, None),
        (TORCH_VARLEN, OnCuda(), {"softcap": 3.0}, "does not cap scores"),
        (TORCH_VARLEN, OnCuda(), {"sinks": torch.zeros(4)}, "has no attention sinks"),
        (TORCH_VARLEN, OnCuda(torch.float32), {}, "computes in float16 or bfloat16, not float32"),
        (TORCH_VARLEN, OnCuda(width=60), {}, "takes heads of a multiple of 8 and at most 256 dimensions, not 60"),
    ],
)
def test_what_a_kernel_takes(
    backend: Any, query: Any, rules: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xrlhf.ops.attention.flash_attn.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    assert backend.refusal(query, ONE_PAIR, AttentionRules(1.0, **rules)) == reason


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xrlhf.ops.attention.flash_attn.find_spec", lambda name: None)
    monkeypatch.setattr("xrlhf.ops.attention.torch_varlen.find_spec", lambda name: None)
    rules = AttentionRules(1.0)
    assert FLASH_ATTN.refusal(OnCuda(), ONE_PAIR, rules) == "is not installed: pip install flash-attn"  # type: ignore[arg-type]
    reason = TORCH_VARLEN.refusal(OnCuda(), ONE_PAIR, rules)  # type: ignore[arg-type]
    assert reason == f"comes with torch 2.10, this is {torch.__version__}"
    monkeypatch.undo()
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    assert TORCH_VARLEN.refusal(OnCuda(), ONE_PAIR, rules) == "needs an Ampere GPU or a later one"  # type: ignore[arg-type]
