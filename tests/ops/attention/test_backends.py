"""Every backend that runs here gives what a dense mask gives, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense_attention import LAYOUTS, ONE_PAIR, dense_attention, layout_of, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xrlhf.ops.attention import AttentionRules, blockwise, segment_attention
from xrlhf.structures import SegmentLayout

BACKENDS = ["blockwise", "sdpa"]


def compare(
    inputs: list[Tensor], segments: SegmentLayout, rules: AttentionRules, backend: str = "blockwise", tol: float = 1e-10
) -> None:
    """Values and gradients, those of the sinks included, equal the dense ones."""
    leaves = inputs if rules.sinks is None else [*inputs, rules.sinks]
    out = segment_attention(*inputs, segments, rules, backend=backend)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    gradients = torch.autograd.grad((out * upstream).sum(), leaves)
    expected = dense_attention(*inputs, segments, rules)
    expected_gradients = torch.autograd.grad((expected * upstream).sum(), leaves)

    assert out.shape == (segments.num_tokens, inputs[0].shape[1], inputs[2].shape[2])
    torch.testing.assert_close(out.double(), expected, rtol=tol, atol=tol)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tol, atol=tol)


@pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("scaling", [8**-0.5, 0.7])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend: str, kv_heads: int, scaling: float, groups: list[tuple[int, list[int]]]) -> None:
    segments = layout_of(groups)
    compare(random_inputs(segments, 4, kv_heads, torch.float64), segments, AttentionRules(scaling), backend)


@pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 7])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_windows_soft_caps_and_sinks(
    groups: list[tuple[int, list[int]]], kv_heads: int, window: int | None, softcap: float | None, with_sinks: bool
) -> None:
    segments = layout_of(groups)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64).requires_grad_() if with_sinks else None
    compare(random_inputs(segments, 4, kv_heads, torch.float64), segments, AttentionRules(0.6, window, softcap, sinks))


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(
        st.tuples(st.integers(0, 30), st.lists(st.integers(1, 20), min_size=1, max_size=6)), min_size=1, max_size=4
    ),
    window=st.none() | st.integers(1, 40),
    block=st.integers(1, 12),
    kept=st.sampled_from([0, 10, 1000]),
)
def test_any_layout_and_block_size(
    groups: list[tuple[int, list[int]]], window: int | None, block: int, kept: int
) -> None:
    """Blocks far smaller than segments and contexts cut by windows, probabilities kept and computed again."""
    segments = layout_of(groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "_BLOCK", block)
        patch.setattr(blockwise, "_KEYS_KEPT", kept)
        blockwise._blocks_of.cache_clear()
        try:
            compare(random_inputs(segments, 2, 1, torch.float64), segments, AttentionRules(0.5, window), tol=1e-8)
        finally:
            blockwise._blocks_of.cache_clear()


def test_long_rows_in_ordinary_blocks() -> None:
    """A prompt of several blocks and a response longer than one, one width of keys kept and one not."""
    segments = layout_of([(700, [200, 30]), (90, [50, 60, 70])])
    for window in (None, 100, 300):
        compare(random_inputs(segments, 2, 1, torch.float64), segments, AttentionRules(0.4, window), tol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_is_as_exact_as_float32_can_be(backend: str) -> None:
    segments = layout_of([(9, [4, 7]), (5, [3, 3, 6])])
    inputs, rules = random_inputs(segments, 4, 2, torch.float32), AttentionRules(0.4)
    out = segment_attention(*inputs, segments, rules, backend=backend)
    torch.testing.assert_close(out.double(), dense_attention(*inputs, segments, rules), rtol=1e-5, atol=1e-6)


def test_bfloat16_is_rounded_once() -> None:
    """Blockwise computes in float32 and rounds its result: half a unit in the last of 8 bits, 2**-8 of the value."""
    segments = layout_of(LAYOUTS["several groups"])
    inputs, rules = random_inputs(segments, 4, 2, torch.bfloat16), AttentionRules(0.4)
    out = segment_attention(*inputs, segments, rules, backend="blockwise")
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.double(), dense_attention(*inputs, segments, rules), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_may_be_narrower_than_keys(backend: str) -> None:
    """Latent attention has values of another width than its queries and keys."""
    segments = layout_of([(3, [2, 4])])
    compare(random_inputs(segments, 4, 4, torch.float64, value_dim=5), segments, AttentionRules(0.35), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_token_sees_by_hand(backend: str) -> None:
    """With queries of 0 every visible token weighs the same: the output is the mean of the values a token may see.

    Values are 0, 1, 2, 3, 4. Token 0 sees {0}, 1 sees {0, 1}; token 2, the first response, sees {0, 1, 2}; token 3, the
    second one, sees {0, 1, 3}, not 2; token 4 sees {0, 1, 3, 4}.
    """
    value = torch.arange(5.0).view(5, 1, 1)
    query, key = torch.zeros(5, 1, 1), torch.ones(5, 1, 1)
    out = segment_attention(query, key, value, ONE_PAIR, AttentionRules(1.0), backend=backend)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 0.5, 1.0, 4 / 3, 2.0]))


def test_windows_and_sinks_by_hand() -> None:
    """The same with a window of 2: token 2 sees {1, 2}, token 3 {1, 3}, token 4 {3, 4}.

    A sink whose score is that of every key weighs as one more key of value 0: token 4 gives (3 + 4) / 3.
    """
    value = torch.arange(5.0).view(5, 1, 1)
    query, key = torch.zeros(5, 1, 1), torch.ones(5, 1, 1)
    out = segment_attention(query, key, value, ONE_PAIR, AttentionRules(1.0, window=2))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 0.5, 1.5, 2.0, 3.5]))
    out = segment_attention(query, key, value, ONE_PAIR, AttentionRules(1.0, window=2, sinks=torch.zeros(1)))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 1 / 3, 1.0, 4 / 3, 7 / 3]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_siblings_and_neighbours_leave_no_trace(backend: str) -> None:
    """What stands in one response reaches that response alone."""
    segments = layout_of([(3, [2, 2]), (2, [3, 1])])
    query, key, value = (tensor.detach() for tensor in random_inputs(segments, 2, 2, torch.float64))
    before = segment_attention(query, key, value, segments, AttentionRules(0.3), backend=backend)
    key[3:5], value[3:5] = 50.0, -1e3
    after = segment_attention(query, key, value, segments, AttentionRules(0.3), backend=backend)
    changed = (before != after).any(dim=(1, 2))
    assert changed.tolist() == [False] * 3 + [True] * 2 + [False] * 8


def test_memory_of_a_long_prompt_does_not_grow_with_its_square() -> None:
    """A prompt of 4096 keeps its inputs alone for the backward pass, not 2 heads x 4096 x 4096 probabilities."""
    segments = layout_of([(4096, [1])])
    inputs = random_inputs(segments, 2, 2, torch.float32)
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        segment_attention(*inputs, segments, AttentionRules(0.3))
    assert sum(saved) < 4 * 512 * 4096


def test_blocks_cover_what_is_visible_and_little_more() -> None:
    """A window of 200 over a prompt of 2000: no block looks at keys before its first query's window."""
    segments = layout_of([(2000, [100])])
    blocks = blockwise._blocks_of(segments, 200, torch.device("cpu"))
    for block in blocks:
        assert block.num_keys <= (block.stop - block.start) + 200
    assert [block.start for block in blocks[1:]] == [block.stop for block in blocks[:-1]]
    assert blocks[-1].stop == 2100


def options_of(rules: dict[str, Any]) -> AttentionRules:
    return AttentionRules(1.0, **rules)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"window": 3}, "has no attention window"),
        ({"softcap": 5.0}, "does not cap scores"),
        ({"sinks": torch.zeros(4)}, "has no attention sinks"),
    ],
)
def test_sdpa_says_what_it_does_not_compute(rules: dict[str, Any], reason: str) -> None:
    from xrlhf.errors import ModelError

    inputs = random_inputs(ONE_PAIR, 4, 4, torch.float32)
    with pytest.raises(ModelError, match=f"the attention backend 'sdpa' {reason}"):
        segment_attention(*inputs, ONE_PAIR, options_of(rules), backend="sdpa")
