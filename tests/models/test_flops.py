"""How many operations training needs: by hand, and as torch counts them while a model runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import TaskType
from tiny_models import random_groups, tiny_backbone
from torch.utils.flop_counter import FlopCounterMode

from xrlhf.data.packing import pack
from xrlhf.models.flops import MatrixFlops, attended_tokens, matrix_flops
from xrlhf.models.lora import add_lora
from xrlhf.structures import SegmentLayout

# ---------------------------------------------------------------- tokens that are attended to

PROMPT_OF_2_RESPONSES_OF_1_AND_3 = SegmentLayout((0, 2, 3), (2, 3, 6), (0, 0, 0), (0, 2, 2))


def test_attended_tokens_by_hand() -> None:
    """The prompt's tokens see 1 and 2; the first response's one sees 3; the second's three see 3, 4 and 5."""
    assert attended_tokens(PROMPT_OF_2_RESPONSES_OF_1_AND_3) == (1 + 2) + 3 + (3 + 4 + 5)


@pytest.mark.parametrize(
    ("window", "attended"),
    [(1, 6), (2, 1 + 2 * 5), (3, 1 + 2 + 3 * 4), (4, 1 + 2 + 3 + 3 + 4 + 4), (5, 18), (6, 18)],
)
def test_attended_tokens_within_a_window(window: int, attended: int) -> None:
    assert attended_tokens(PROMPT_OF_2_RESPONSES_OF_1_AND_3, window) == attended


@pytest.mark.parametrize("window", [None, 1, 4, 9])
def test_attended_tokens_token_by_token(window: int | None) -> None:
    segments = pack(random_groups()).segments
    expected = 0
    for start, stop, context_start, context_stop in zip(
        segments.start, segments.stop, segments.context_start, segments.context_stop, strict=True
    ):
        for token in range(start, stop):
            seen = context_stop - context_start + token - start + 1
            expected += seen if window is None else min(seen, window)
    assert attended_tokens(segments, window) == expected


def test_an_empty_row() -> None:
    assert attended_tokens(SegmentLayout((), (), (), ())) == 0


# ---------------------------------------------------------------- models

LLAMA_LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
"""Weights of a layer of the tiny Llama: queries, keys and values of half as many heads, output, gated MLP: 7680."""


def test_a_llama() -> None:
    """2 layers of 7680 weights, six operations each; pairs: 12 operations in each of 2 layers, 4 heads, 8 numbers.

    The table of 320 embeddings and the score head are no part of it.
    """
    assert LLAMA_LAYER == 7680
    flops = matrix_flops(tiny_backbone("llama"))
    assert flops == MatrixFlops(6 * 2 * 7680, {None: 12 * 2 * 4 * 8})
    assert flops.of(PROMPT_OF_2_RESPONSES_OF_1_AND_3) == 92_160 * 6 + 768 * 18


def test_a_llama_with_adapters() -> None:
    """Rank 2 adds 2 * (inputs + outputs) to each of the seven weights of a layer: 928, all of which are trained.

    All 2 * (7680 + 928) weights: two operations forward, two back; the 2 * 928 trained ones two more.
    """
    model = tiny_backbone("llama")
    add_lora(model, ["score"], {"r": 2}, TaskType.SEQ_CLS)
    adapters = 2 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 48))
    assert adapters == 928
    flops = matrix_flops(model)
    assert flops.per_token == 4 * 2 * (7680 + 928) + 2 * 2 * 928 == 72_576
    assert flops.per_attended_token == {None: 768}


def test_a_frozen_backbone_needs_no_backward_pass() -> None:
    model = tiny_backbone("llama")
    model.model.requires_grad_(False)
    assert matrix_flops(model) == MatrixFlops(2 * 2 * 7680, {None: 4 * 2 * 4 * 8})


def test_a_mixture_of_experts() -> None:
    """Each token goes to 2 of 4 experts. A layer: attention 3072, router 4 * 32, two experts of 3 * 32 * 48 = 4608."""
    flops = matrix_flops(tiny_backbone("mixtral"))
    assert flops.per_token == 6 * 2 * (3072 + 128 + 2 * 4608) == 148_992
    assert flops.per_attended_token == {None: 768}


def test_biases_of_experts_are_no_products() -> None:
    """Attention 3072 a layer, router 4 * 32; each of 4 experts 3 * 32 * 48, and all 4 are used. Biases are 2-D here."""
    flops = matrix_flops(tiny_backbone("gpt_oss", num_experts_per_tok=4))
    assert flops.per_token == 6 * 2 * (3072 + 128 + 4 * 4608)


def test_layers_that_look_back_a_shorter_way() -> None:
    """One of gpt-oss's two layers has a window of 128; both layers of the tiny Mistral one of 512."""
    assert matrix_flops(tiny_backbone("gpt_oss")).per_attended_token == {128: 384, None: 384}
    windowed = matrix_flops(tiny_backbone("mistral", sliding_window=3))
    assert windowed.per_attended_token == {3: 768}
    assert windowed.of(PROMPT_OF_2_RESPONSES_OF_1_AND_3) == 92_160 * 6 + 768 * 15


def test_position_tables_are_no_products() -> None:
    """GPT-2's layer: 32 * 96 for queries, keys and values, 32 * 32, and an MLP of 2 * 32 * 128."""
    assert matrix_flops(tiny_backbone("gpt2")).per_token == 6 * 2 * (32 * 96 + 32 * 32 + 2 * 32 * 128)


def test_latent_attention_has_heads_of_two_sizes() -> None:
    """DeepSeek's config calls the rotary part alone head_dim. 4 heads of 12 for scores and 8 for values, 1 layer."""
    config = SimpleNamespace(
        num_hidden_layers=1, num_attention_heads=4, hidden_size=32, head_dim=4, qk_head_dim=12, v_head_dim=8
    )
    config.get_text_config = lambda: config
    layer = torch.nn.Linear(3, 5)
    model: Any = SimpleNamespace(config=config, base_model_prefix="backbone", backbone=layer)
    assert matrix_flops(model) == MatrixFlops(6 * 15, {None: 6 * 4 * (12 + 8)})


def test_layers_without_pairs_of_tokens() -> None:
    """Two of four layers compare tokens: 2 * 2 heads of 4 numbers each."""
    kinds = ["linear_attention", "full_attention", "conv", "full_attention"]
    config = SimpleNamespace(num_hidden_layers=4, num_attention_heads=2, hidden_size=8, layer_types=kinds)
    config.get_text_config = lambda: config
    model: Any = SimpleNamespace(config=config, base_model_prefix="backbone", backbone=torch.nn.Linear(8, 8))
    assert matrix_flops(model).per_attended_token == {None: 12 * 2 * 2 * 4}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gpt_neox", "phi3", "mixtral", "internlm2"])
def test_torch_counts_the_same(family: str) -> None:
    """Forward and backward of the backbone alone on 11 tokens, where every token is multiplied with every other.

    Some versions make the angles of rotary positions in a product, which torch then sees too: less than a thousandth.
    """
    tokens = 11
    model = tiny_backbone(family, attn_implementation="eager", experts_implementation="eager")
    backbone = getattr(model, model.base_model_prefix)
    with FlopCounterMode(display=False) as counter:
        backbone(torch.arange(5, 5 + tokens)[None], use_cache=False).last_hidden_state.sum().backward()
    flops = matrix_flops(model)
    counted = flops.per_token * tokens + sum(flops.per_attended_token.values()) * tokens**2
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-3)
