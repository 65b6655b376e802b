from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xrlhf.errors import ModelError
from xrlhf.ops.attention import (
    ATTENTION_NAME,
    _registered_attention,
    longest_conversation,
    register_segment_attention,
    segment_attention,
)
from xrlhf.structures import SegmentLayout

ONE_PAIR = SegmentLayout(start=(0, 2, 3), stop=(2, 3, 5), context_start=(0, 0, 0), context_stop=(0, 2, 2))
"""Prompt 0:2, responses 2:3 and 3:5."""


def layout_of(groups: list[tuple[int, list[int]]]) -> SegmentLayout:
    """The layout of groups given as prompt length and response lengths."""
    rows: list[tuple[int, int, int, int]] = []
    at = 0
    for prompt, responses in groups:
        begin, end = at, at + prompt
        if prompt:
            rows.append((begin, end, begin, begin))
        at = end
        for size in responses:
            rows.append((at, at + size, begin, end))
            at += size
    return SegmentLayout(*(tuple(column) for column in zip(*rows, strict=True)))


def visible(segments: SegmentLayout) -> Tensor:
    """(T, T) bool, spelled out token by token from the definition in SegmentLayout."""
    size = segments.num_tokens
    seen = torch.zeros(size, size, dtype=torch.bool)
    for s in range(len(segments)):
        for query in range(segments.start[s], segments.stop[s]):
            for key in range(size):
                in_context = segments.context_start[s] <= key < segments.context_stop[s]
                seen[query, key] = in_context or segments.start[s] <= key <= query
    return seen


def reference(query: Tensor, key: Tensor, value: Tensor, segments: SegmentLayout, scaling: float | None) -> Tensor:
    """The same by a dense mask, in float64."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.double().repeat_interleave(repeats, dim=1) for tensor in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = (query.double() @ key.transpose(2, 3) * scale).masked_fill(~visible(segments), -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


def tensors(segments: SegmentLayout, heads: int, kv_heads: int, dtype: torch.dtype, value_dim: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, 8), (kv_heads, 8), (kv_heads, value_dim)]
    return [
        torch.randn(1, n, segments.num_tokens, dim, generator=generator, dtype=dtype).requires_grad_()
        for n, dim in shapes
    ]


@pytest.mark.parametrize(
    "groups",
    [
        [(5, [3, 4])],
        [(1, [1, 1])],
        [(0, [3, 2])],
        [(4, [2])],
        [(6, [1, 5, 2]), (0, [4, 1]), (3, [2, 2, 7, 1]), (1, [1])],
    ],
    ids=["pair", "one token each", "no prompt", "one response", "several groups"],
)
@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_values_and_gradients_equal_a_dense_mask(
    groups: list[tuple[int, list[int]]], scaling: float | None, kv_heads: int
) -> None:
    segments = layout_of(groups)
    inputs = tensors(segments, 4, kv_heads, torch.float64)
    upstream = torch.randn(
        1, segments.num_tokens, 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )

    out = segment_attention(*inputs, segments, scaling=scaling)
    gradients = torch.autograd.grad((out * upstream).sum(), inputs)
    expected = reference(*inputs, segments, scaling)
    expected_gradients = torch.autograd.grad((expected * upstream).sum(), inputs)

    assert out.shape == (1, segments.num_tokens, 4, 8)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_float32_is_as_exact_as_float32_can_be() -> None:
    segments = layout_of([(9, [4, 7]), (5, [3, 3, 6])])
    inputs = tensors(segments, 4, 2, torch.float32)
    torch.testing.assert_close(
        segment_attention(*inputs, segments).double(), reference(*inputs, segments, None), rtol=1e-5, atol=1e-6
    )


def test_values_may_be_narrower_than_keys() -> None:
    """Latent attention has values of another width than its queries and keys."""
    segments = layout_of([(3, [2, 4])])
    inputs = tensors(segments, 4, 4, torch.float64, value_dim=5)
    out = segment_attention(*inputs, segments)
    assert out.shape == (1, 9, 4, 5)
    torch.testing.assert_close(out, reference(*inputs, segments, None))


def test_what_a_token_sees_by_hand() -> None:
    """With queries of 0 every visible token weighs the same: the output is the mean of the values a token may see.

    Values are 0, 1, 2, 3, 4. Token 0 sees {0}, 1 sees {0, 1}; token 2, the first response, sees {0, 1, 2}; token 3, the
    second one, sees {0, 1, 3}, not 2; token 4 sees {0, 1, 3, 4}.
    """
    value = torch.arange(5.0).view(1, 1, 5, 1)
    out = segment_attention(torch.zeros(1, 1, 5, 1), torch.ones(1, 1, 5, 1), value, ONE_PAIR)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 0.5, 1.0, 4 / 3, 2.0]))


def test_siblings_and_neighbours_leave_no_trace() -> None:
    """NaN in one response reaches that response alone."""
    segments = layout_of([(3, [2, 2]), (2, [3, 1])])
    query, key, value = (tensor.detach().clone() for tensor in tensors(segments, 2, 2, torch.float32))
    value[:, :, 3:5] = torch.nan
    clean = segment_attention(query, key, value, segments).isfinite().all(dim=(0, 2, 3))
    assert clean.tolist() == [True] * 3 + [False] * 2 + [True] * 8


def test_a_layout_of_another_length_is_refused() -> None:
    ones = torch.ones(1, 1, 4, 2)
    with pytest.raises(ValueError, match="segments cover 5 tokens of one row, got 4 queries and 4 keys in 1 rows"):
        segment_attention(ones, ones, ones, ONE_PAIR)


def test_several_rows_are_refused() -> None:
    ones = torch.ones(2, 1, 5, 2)
    with pytest.raises(ValueError, match="in 2 rows"):
        segment_attention(ones, ones, ones, ONE_PAIR)


def test_keys_of_a_cache_are_refused() -> None:
    longer = torch.ones(1, 1, 7, 2)
    with pytest.raises(ValueError, match="got 5 queries and 7 keys"):
        segment_attention(torch.ones(1, 1, 5, 2), longer, longer, ONE_PAIR)


def test_a_context_that_is_no_prompt_is_refused() -> None:
    ones = torch.ones(1, 1, 5, 2)
    wrong = SegmentLayout(start=(0, 2, 3), stop=(2, 3, 5), context_start=(0, 0, 2), context_stop=(0, 2, 3))
    with pytest.raises(ValueError, match="segment 2 has the context 2:3, which is no earlier prompt"):
        segment_attention(ones, ones, ones, wrong)


def test_longest_conversation_counts_prompt_and_response() -> None:
    assert longest_conversation(layout_of([(5, [3, 4]), (2, [1, 6]), (0, [7, 2])])) == 9


def test_registering_twice_changes_nothing() -> None:
    from transformers import AttentionInterface

    assert register_segment_attention() == register_segment_attention() == ATTENTION_NAME
    assert AttentionInterface().get_interface(ATTENTION_NAME, None) is _registered_attention


class CausalAttention(nn.Module):
    is_causal = True


def call(module: nn.Module | None = None, **options: Any) -> Tensor:
    """The registered function on the layout of one pair, five tokens, called as transformers calls it."""
    ones = torch.ones(1, 1, 5, 2)
    arguments = {"segments": ONE_PAIR, **options}
    return _registered_attention(module or CausalAttention(), ones, ones, ones, None, **arguments)[0]


def test_the_registered_function_is_the_same_function() -> None:
    ones = torch.ones(1, 1, 5, 2)
    torch.testing.assert_close(call(scaling=0.3), segment_attention(ones, ones, ones, ONE_PAIR, scaling=0.3))


def test_unpacked_input_is_refused() -> None:
    with pytest.raises(ModelError, match="segment attention needs packed batches"):
        call(segments=None)


def test_dropout_is_refused() -> None:
    with pytest.raises(ModelError, match=r"CausalAttention drops 0\.1 of its attention"):
        call(dropout=0.1)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"softcap": 50.0}, "soft-capped scores"),
        ({"s_aux": torch.zeros(1)}, "attention sinks"),
        ({"position_bias": torch.zeros(1, 1, 5, 5)}, "position biases"),
    ],
)
def test_what_is_not_computed_is_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=f"CausalAttention needs {what}, which packed attention does not compute"):
        call(**options)


def test_attention_to_later_tokens_is_refused() -> None:
    module = CausalAttention()
    with pytest.raises(ModelError, match="also attends to later tokens"):
        call(module, is_causal=False)
    module.is_causal = False
    with pytest.raises(ModelError, match="also attends to later tokens"):
        call(module)
    # What the call says goes before what the module says.
    assert call(module, is_causal=True).shape == (1, 5, 1, 2)


def test_a_window_shorter_than_a_conversation_is_refused() -> None:
    """The longest conversation is the prompt of 2 and the second response of 2."""
    with pytest.raises(ModelError, match="window of 3 tokens and a conversation has 4: set max_length to at most 3"):
        call(sliding_window=3)


@pytest.mark.parametrize("window", [4, 5, 4096])
def test_a_window_no_conversation_reaches_changes_nothing(window: int) -> None:
    torch.testing.assert_close(call(sliding_window=window), call())


def test_calls_are_collected_for_who_asks() -> None:
    calls: list[str] = []
    call(segment_calls=calls)
    call(segment_calls=calls)
    assert calls == ["CausalAttention", "CausalAttention"]


def test_other_keywords_of_transformers_are_let_through() -> None:
    torch.testing.assert_close(call(position_ids=torch.arange(5)[None], config=SimpleNamespace()), call())
