from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_backbone
from torch import Tensor
from transformers import LlamaForSequenceClassification, LlamaModel, PreTrainedModel

from xrlhf.errors import ModelError
from xrlhf.models.loading import score_head
from xrlhf.models.probe import check_packing, check_padding, choose_layout
from xrlhf.models.reward_model import RewardModel

PACKING_FAMILIES = [
    "llama",
    "qwen2",
    "opt",
    "gpt2",
    "gpt_neox",
    "mixtral",
    "gemma2",
    "gemma3_text",
    "gpt_oss",
    "internlm2",
]


@pytest.mark.parametrize("family", PACKING_FAMILIES)
@pytest.mark.parametrize("with_head", [False, True])
def test_families_that_pack_pass(family: str, with_head: bool) -> None:
    model = tiny_backbone(family)
    check_packing(model, score_head(model)[1] if with_head else None)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_low_precision_passes(family: str) -> None:
    model = tiny_backbone(family, dtype="bfloat16")
    check_packing(model, score_head(model)[1])


@pytest.mark.parametrize("family", ["bloom", "falcon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_that_cannot_be_replaced_is_refused(family: str, dtype: str) -> None:
    """Whatever the weights: in bfloat16 a tiny model's numbers alone would not show it."""
    model = tiny_backbone(family, dtype=dtype, initializer_range=0.02)
    with pytest.raises(ModelError, match="cannot be trained on packed groups: its attention cannot be replaced"):
        check_packing(model)


def test_attention_of_another_kind_is_refused() -> None:
    model = tiny_backbone("bert")
    with pytest.raises(ModelError, match=r"BertForSequenceClassification cannot be trained on .*attends to later tok"):
        check_packing(model, score_head(model)[1])


@pytest.mark.parametrize("family", ["llama", "bloom", "bert"])
def test_the_model_is_left_as_it_was(family: str) -> None:
    model = tiny_backbone(family).train()
    before, attention = copy.deepcopy(model.state_dict()), model.config._attn_implementation
    try:
        check_packing(model, score_head(model)[1])
    except ModelError:
        assert family != "llama"
    assert model.training
    assert model.config._attn_implementation == attention
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not score_head(model)[1]._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


class PooledHead(LlamaForSequenceClassification):
    """Changes the hidden states before its head, as classifiers with a dense layer do."""

    def forward(self, input_ids: Tensor, **kwargs: object) -> Tensor:
        return self.score(self.model(input_ids, use_cache=False).last_hidden_state.tanh())


def as_class(model_class: type[PreTrainedModel]) -> PreTrainedModel:
    model = tiny_backbone()
    model.__class__ = model_class
    return model


def test_a_head_that_reads_something_else_is_found() -> None:
    model = as_class(PooledHead)
    check_packing(model)
    with pytest.raises(ModelError, match="PooledHead gives other hidden states when groups are packed"):
        check_packing(model, score_head(model)[1])


class LooseModel(LlamaModel):
    """Forgets the positions it is given, as some families do."""

    def forward(self, *args: object, position_ids: Tensor | None = None, **kwargs: object) -> object:
        return super().forward(*args, **kwargs)


def test_positions_that_are_ignored_are_found() -> None:
    model = tiny_backbone()
    model.model.__class__ = LooseModel
    with pytest.raises(ModelError, match="gives other hidden states when groups are packed"):
        check_packing(model)


def test_layers_without_replaceable_attention_are_found() -> None:
    """Hybrid families mix attention with layers that mix tokens in another way."""
    model = tiny_backbone()

    def other_mixing(hidden_states: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        return hidden_states.cumsum(dim=1), None

    model.model.layers[1].self_attn.forward = other_mixing
    with pytest.raises(ModelError, match="only 1 of its 2 layers have attention that can be replaced"):
        check_packing(model)


def test_a_model_that_cannot_run_at_all_is_named_as_such() -> None:
    with pytest.raises(ModelError, match="LlamaForSequenceClassification cannot read a plain sequence of tokens"):
        check_packing(tiny_backbone(num_key_value_heads=3))


def test_not_a_number_is_refused() -> None:
    model = tiny_backbone()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="gives other hidden states"):
        check_packing(model)


def test_the_reward_model_asks() -> None:
    with pytest.raises(ModelError, match="BloomForSequenceClassification cannot be trained on packed groups"):
        RewardModel(tiny_backbone("bloom"), layout="packed")


# ------------------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("family", ["bloom", "falcon", "gptj", "gpt_neo", "mpt", "llama", "opt", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("static_shapes", [False, True])
def test_families_that_pad_pass(family: str, dtype: str, static_shapes: bool) -> None:
    model = tiny_backbone(family, dtype=dtype)
    check_padding(model, score_head(model)[1], static_shapes=static_shapes)


class AveragingModel(LlamaModel):
    """Lets every token see the mean of its row, padding included."""

    def forward(self, *args: object, **kwargs: object) -> object:
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(dim=1, keepdim=True)
        return output


def test_padding_that_changes_what_stands_before_it_is_found() -> None:
    model = tiny_backbone()
    model.model.__class__ = AveragingModel
    with pytest.raises(ModelError, match="LlamaForSequenceClassification gives other hidden states when rows are pad"):
        check_padding(model)


def test_a_head_that_reads_something_else_is_found_in_padded_rows() -> None:
    model = as_class(PooledHead)
    check_padding(model)
    with pytest.raises(ModelError, match="or changes them before its head reads them"):
        check_padding(model, score_head(model)[1])


class WideHead(LlamaForSequenceClassification):
    """Joins the last two states for a head of twice the width."""

    def forward(self, input_ids: Tensor, **kwargs: object) -> Tensor:
        states = self.model(input_ids, use_cache=False).last_hidden_state
        return self.score(states.repeat(1, 1, 2))


@pytest.mark.parametrize("check", [check_packing, check_padding])
def test_a_head_of_another_width_is_found(check: Callable[..., None]) -> None:
    model = as_class(WideHead)
    model.score = torch.nn.Linear(64, 1, bias=False)
    with pytest.raises(
        ModelError, match="WideHead changes the hidden state of the last token before its head reads it"
    ):
        check(model, model.score)


class MasklessModel(LlamaModel):
    """Takes no attention mask."""

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> object:
        return super().forward(input_ids, use_cache=use_cache)


def test_a_model_that_takes_no_mask_is_refused() -> None:
    model = tiny_backbone()
    model.model.__class__ = MasklessModel
    with pytest.raises(ModelError, match=r"cannot be trained on padded rows: .*unexpected keyword argument"):
        check_padding(model)


def test_a_model_that_cannot_run_at_all_is_named_as_such_before_padding() -> None:
    with pytest.raises(ModelError, match="LlamaForSequenceClassification cannot read a plain sequence of tokens"):
        check_padding(tiny_backbone(num_key_value_heads=3))


def test_not_a_number_is_refused_in_padded_rows() -> None:
    model = tiny_backbone("bloom")
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="gives other hidden states when rows are padded"):
        check_padding(model)


# ------------------------------------------------------------------------------------------------ choosing


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_packing_is_chosen_where_it_is_right(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_layout(tiny_backbone()) == "packed"
    assert messages(caplog) == []


def test_padding_is_chosen_where_packing_is_wrong_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Nor does transformers say a word of its own."""
    with caplog.at_level(logging.INFO):
        assert choose_layout(tiny_backbone("bloom")) == "padded"
    assert messages(caplog) == [
        (
            "WARNING",
            "BloomForSequenceClassification cannot be trained on packed groups: its attention cannot be replaced; it "
            "runs on padded rows instead: prompts are repeated for every response",
        )
    ]


def test_padding_is_chosen_where_hidden_states_differ(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_backbone()
    model.model.__class__ = LooseModel
    attention = model.config._attn_implementation
    assert choose_layout(model, score_head(model)[1]) == "padded"
    assert "gives other hidden states when groups are packed" in caplog.text
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"layout": "padded"}, "the recipe says layout='padded'"),
        ({"static_shapes": True}, "the device needs static shapes"),
    ],
)
def test_padding_that_was_asked_for_is_no_warning(
    options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_layout(tiny_backbone(), **options) == "padded"
    assert messages(caplog) == [
        ("INFO", f"LlamaForSequenceClassification runs on padded rows, prompts repeated for every response: {reason}")
    ]


def test_what_fits_no_layout_is_refused() -> None:
    """An encoder pools its first token for the head."""
    model = tiny_backbone("bert")
    with pytest.raises(ModelError, match=r"BertForSequenceClassification .* so it cannot be trained here"):
        choose_layout(model, score_head(model)[1])


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ModelError, match="layout must be 'auto', 'packed' or 'padded', got 'rows'"):
        choose_layout(tiny_backbone(), layout="rows")
