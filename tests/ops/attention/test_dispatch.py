"""Which backend computes, what is refused, and what transformers hands over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dense_attention import ONE_PAIR, layout_of
from torch import Tensor, nn

from xrlhf.errors import ConfigError, ModelError
from xrlhf.ops.attention import (
    ATTENTION_NAME,
    AttentionRules,
    longest_conversation,
    register_segment_attention,
    segment_attention,
)
from xrlhf.ops.attention.dispatch import _registered_attention
from xrlhf.structures import SegmentLayout

INPUTS = [torch.randn(1, 1, 5, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
"""Query, key and value of one pair, as transformers gives them."""


def test_a_layout_of_another_length_is_refused() -> None:
    ones = torch.ones(4, 1, 2)
    with pytest.raises(ValueError, match="segments cover 5 tokens, got 4 queries and 4 keys"):
        segment_attention(ones, ones, ones, ONE_PAIR, AttentionRules(1.0))


def test_keys_of_a_cache_are_refused() -> None:
    longer = torch.ones(7, 1, 2)
    with pytest.raises(ValueError, match="got 5 queries and 7 keys"):
        segment_attention(torch.ones(5, 1, 2), longer, longer, ONE_PAIR, AttentionRules(1.0))


def test_a_context_that_is_no_prompt_is_refused() -> None:
    ones = torch.ones(5, 1, 2)
    wrong = SegmentLayout(start=(0, 2, 3), stop=(2, 3, 5), context_start=(0, 0, 2), context_stop=(0, 2, 3))
    with pytest.raises(ValueError, match="segment 2 has the context 2:3, which is no earlier prompt"):
        segment_attention(ones, ones, ones, wrong, AttentionRules(1.0))


@pytest.mark.parametrize("name", ["flash_attn", "torch_varlen", "flex"])
def test_backends_of_other_devices_are_refused_by_name(name: str) -> None:
    ones = torch.ones(5, 1, 8)
    with pytest.raises(ModelError, match=f"the attention backend '{name}' .* on CUDA, not on cpu; 'auto' takes one"):
        segment_attention(ones, ones, ones, ONE_PAIR, AttentionRules(1.0), backend=name)


def test_several_rows_are_refused() -> None:
    rows = torch.ones(2, 1, 5, 2)
    with pytest.raises(ValueError, match="takes one packed row, got 2"):
        _registered_attention(CausalAttention(), rows, rows, rows, None, segments=ONE_PAIR, backend="auto")


def test_longest_conversation_counts_prompt_and_response() -> None:
    assert longest_conversation(layout_of([(5, [3, 4]), (2, [1, 6]), (0, [7, 2])])) == 9


def test_registering_twice_changes_nothing() -> None:
    from transformers import AttentionInterface

    assert register_segment_attention() == register_segment_attention() == ATTENTION_NAME
    assert register_segment_attention("flash_attn") == f"{ATTENTION_NAME}_0"
    assert AttentionInterface().get_interface(ATTENTION_NAME, None).keywords == {"backend": "auto"}


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="no attention backend is called 'fast': choose 'auto' or one of flash_attn"):
        register_segment_attention("fast")


class CausalAttention(nn.Module):
    is_causal = True


def call(module: nn.Module | None = None, **options: Any) -> Tensor:
    """The registered function on the layout of one pair, five tokens, called as transformers calls it."""
    arguments = {"segments": ONE_PAIR, "backend": "auto", **options}
    return _registered_attention(module or CausalAttention(), *INPUTS, None, **arguments)[0]


def test_the_registered_function_is_the_same_function() -> None:
    sinks = torch.tensor([0.4])
    rules = AttentionRules(0.3, window=2, softcap=3.0, sinks=sinks)
    expected = segment_attention(*(tensor[0].transpose(0, 1) for tensor in INPUTS), ONE_PAIR, rules)
    got = call(scaling=0.3, sliding_window=2, softcap=3.0, s_aux=sinks)
    torch.testing.assert_close(got, expected[None])


def test_the_scale_is_that_of_the_heads_if_none_is_given() -> None:
    torch.testing.assert_close(call(), call(scaling=2**-0.5))


def test_unpacked_input_is_refused() -> None:
    with pytest.raises(ModelError, match="segment attention needs packed batches"):
        call(segments=None)


def test_dropout_is_refused() -> None:
    with pytest.raises(ModelError, match=r"CausalAttention drops 0\.1 of its attention"):
        call(dropout=0.1)


def test_position_biases_are_refused() -> None:
    with pytest.raises(ModelError, match="CausalAttention needs position biases, which packed attention does not"):
        call(position_bias=torch.zeros(1, 1, 5, 5))


def test_attention_to_later_tokens_is_refused() -> None:
    module = CausalAttention()
    with pytest.raises(ModelError, match="also attends to later tokens"):
        call(module, is_causal=False)
    module.is_causal = False
    with pytest.raises(ModelError, match="also attends to later tokens"):
        call(module)
    # What the call says goes before what the module says.
    assert call(module, is_causal=True).shape == (1, 5, 1, 2)


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
