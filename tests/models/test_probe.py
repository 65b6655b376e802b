from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import tiny_backbone
from torch import Tensor
from transformers import LlamaForSequenceClassification, LlamaModel, PreTrainedModel

from xrlhf.errors import ModelError
from xrlhf.models.loading import score_head
from xrlhf.models.probe import check_packing
from xrlhf.models.reward_model import RewardModel


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt", "gpt2", "gpt_neox", "mixtral"])
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


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("gemma2", "Gemma2ForSequenceClassification cannot be trained on packed groups: .*soft-capped scores"),
        ("gpt_oss", "GptOssForSequenceClassification cannot be trained on packed groups: .*attention sinks"),
        ("bert", "BertForSequenceClassification cannot be trained on packed groups: .*also attends to later tokens"),
    ],
)
def test_attention_of_another_kind_is_refused(family: str, message: str) -> None:
    model = tiny_backbone(family)
    with pytest.raises(ModelError, match=message):
        check_packing(model, score_head(model)[1])


@pytest.mark.parametrize("family", ["llama", "bloom", "gemma2"])
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
        RewardModel(tiny_backbone("bloom"))
