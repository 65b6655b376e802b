"""One score or several attributes: what the loss sees, what the score is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_groups, tiny_backbone
from transformers import LlamaConfig

from xrlhf.data.packing import pack
from xrlhf.errors import ConfigError, ModelError
from xrlhf.losses import BinaryLoss, RankingLoss, RegressionLoss
from xrlhf.models.heads import AttributeHead, ScalarHead, describe_head, head_of_config
from xrlhf.models.loading import backbone_from_config
from xrlhf.models.reward_model import RewardModel
from xrlhf.structures import PackedBatch

WEIGHTS = {"help": 0.5, "truth": 2.0, "length": -1.0}
NAN = math.nan


def attribute_backbone(**options: Any) -> Any:
    return tiny_backbone(num_outputs=3, **options)


def batch_with(attributes: list[list[list[float]]], ratings: list[list[float]] | None = None) -> PackedBatch:
    """Groups of as many responses as there are lists of attributes."""
    groups = random_groups([(2, (2,) * len(group)) for group in attributes])
    return pack(
        [
            replace(
                group,
                attributes=np.array(values, dtype=np.float32),
                ratings=None if ratings is None else np.array(ratings[number], dtype=np.float32),
            )
            for number, (group, values) in enumerate(zip(groups, attributes, strict=True))
        ]
    )


# ---------------------------------------------------------------------------------------------- heads alone


def test_a_scalar_head_passes_the_score_on() -> None:
    head, raw = ScalarHead(), torch.tensor([[[1.0], [2.0]]])
    assert head.outputs(raw).tolist() == [[1, 2]]
    assert head.scalar(head.outputs(raw)).tolist() == [[1, 2]]
    batch = batch_with([[[1.0], [2.0]]], [[4.0, 3.0]])
    assert head.targets(batch).tolist() == [[4, 3]]
    assert (head.names, head.num_outputs) == ((), 1)


def test_an_attribute_head_weighs() -> None:
    """.5 * 2 + 2 * 3 - 1 * 4 = 3."""
    head = AttributeHead(WEIGHTS)
    assert (head.names, head.num_outputs) == (("help", "truth", "length"), 3)
    outputs = torch.tensor([[[2.0, 3.0, 4.0]]])
    assert head.outputs(outputs) is outputs
    assert head.scalar(outputs).tolist() == [[3]]


def test_folded_weights_give_the_weighted_sum() -> None:
    head, generator = AttributeHead(WEIGHTS), torch.Generator().manual_seed(0)
    weight, bias = torch.randn(3, 5, generator=generator), torch.randn(3, generator=generator)
    states = torch.randn(7, 5, generator=generator)
    row, offset = head.folded(weight, bias)
    assert row.shape == (1, 5)
    assert offset is not None
    torch.testing.assert_close((states @ row.T + offset)[:, 0], head.scalar(states @ weight.T + bias))
    assert head.folded(weight, None)[1] is None


def test_a_config_keeps_the_head() -> None:
    config, head = LlamaConfig(), AttributeHead(WEIGHTS)
    assert isinstance(head_of_config(config), ScalarHead)
    describe_head(config, head)
    assert (config.num_labels, config.id2label) == (3, {0: "help", 1: "truth", 2: "length"})
    found = head_of_config(config)
    assert isinstance(found, AttributeHead)
    assert found.weights == WEIGHTS
    assert list(found.weights) == list(WEIGHTS)
    describe_head(config, None)
    assert config.num_labels == 1
    assert isinstance(head_of_config(config), ScalarHead)


def test_a_config_with_broken_weights_is_refused() -> None:
    where = r"^attribute_weights of the model's config\.json"
    with pytest.raises(
        ModelError, match=rf"{where} is 3: expected a list with a number for each of the labels LABEL_0"
    ):
        head_of_config(LlamaConfig(attribute_weights=3))
    with pytest.raises(ModelError, match=rf"{where} is \[1\.0\]: expected a list .* labels LABEL_0, LABEL_1"):
        head_of_config(LlamaConfig(attribute_weights=[1.0], num_labels=2))
    with pytest.raises(ModelError, match=f"{where}: AttributeHead: the weight of 'LABEL_0' is 'x'"):
        head_of_config(LlamaConfig(attribute_weights=["x", 1.0], num_labels=2))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, r"weights is \{\}; accepted is a number for each attribute by name"),
        (["help"], r"weights is \['help'\]"),
        ({"help": "1"}, "the weight of 'help' is '1'; accepted is a finite number"),
        ({"help": NAN}, "the weight of 'help' is nan"),
        ({"help": True}, "the weight of 'help' is True"),
        ({3: 1.0}, "the weight of 3 is 1.0"),
        ({"help": 0.0, "truth": 0}, "all weights are 0"),
    ],
)
def test_wrong_weights_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^AttributeHead: {message}"):
        AttributeHead(weights)


# ------------------------------------------------------------------------------------------- in a reward model


def test_the_loss_sees_attributes_and_the_score_is_their_sum() -> None:
    model = RewardModel(attribute_backbone(), head=AttributeHead(WEIGHTS), loss=RegressionLoss())
    batch = batch_with([[[1.0, 0.0, NAN], [0.0, 2.0, 1.0]], [[3.0, 3.0, 3.0]]])
    outputs = model.outputs(batch).detach()
    assert outputs.shape == (2, 2, 3)
    assert not outputs[1, 1].any()
    weights = torch.tensor(list(WEIGHTS.values()))
    torch.testing.assert_close(model.score(batch).detach(), (outputs * weights).sum(-1))
    result = model(batch)
    errors = (outputs - torch.nan_to_num(batch.attributes)) ** 2
    errors[0, 0, 2] = 0
    expected = torch.stack([errors[0].sum() / 5, errors[1, 0].mean()])
    torch.testing.assert_close(result.group_losses, expected)
    metrics = {name: value.item() for name, value in result.metrics.items()}
    assert metrics["mse"] == pytest.approx(expected.sum().item(), rel=1e-5)
    assert metrics["num_mse"] == 2
    assert metrics["mse_length"] == pytest.approx((errors[0, 1, 2] + errors[1, 0, 2]).item(), rel=1e-5)
    assert metrics["mse_help"] == pytest.approx((errors[0, :, 0].mean() + errors[1, 0, 0]).item(), rel=1e-5)
    assert metrics["num_score_mean"] == 1
    assert metrics["score_mean"] == pytest.approx(model.score(batch)[1, 0].item(), rel=1e-5)


def test_every_row_of_the_head_learns_its_own_attribute() -> None:
    """Only the second attribute has targets: the rows of the others get no gradient."""
    model = RewardModel(attribute_backbone(), head=AttributeHead(WEIGHTS), loss=RegressionLoss())
    model(batch_with([[[NAN, 5.0, NAN]]])).loss.backward()
    gradient = model.hf_model.score.weight.grad
    assert gradient.norm(dim=1)[1] > 0.1
    assert gradient.norm(dim=1)[[0, 2]].tolist() == [0, 0]


def test_penalties_rank_by_the_score() -> None:
    model = RewardModel(
        attribute_backbone(),
        head={"type": AttributeHead, "weights": WEIGHTS},
        loss=RegressionLoss(),
        penalty=RankingLoss(),
    )
    batch = batch_with([[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]])
    ranking = RankingLoss()(model.score(batch), batch.response_mask, batch.ratings)
    regression = RegressionLoss()(model.outputs(batch), batch.response_mask, batch.attributes)
    torch.testing.assert_close(model(batch).group_losses, (ranking + regression).detach())


def test_the_backbone_gets_as_many_outputs_as_the_head_has() -> None:
    spec = {"type": backbone_from_config, "model_type": "llama", "vocab_size": 320, "hidden_size": 16}
    sizes = {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = RewardModel({**spec, **sizes}, head=AttributeHead(WEIGHTS), loss=BinaryLoss())
    assert model.hf_model.score.out_features == 3
    with pytest.raises(ModelError, match="no linear score head named score or classifier or v_head with 3 outputs"):
        RewardModel(tiny_backbone(), head=AttributeHead(WEIGHTS))


def test_a_loss_on_scores_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"RankingLoss does not take the predictions of Attr.* into penalty"):
        RewardModel(attribute_backbone(), head=AttributeHead(WEIGHTS), loss=RankingLoss())


@pytest.mark.parametrize("attributes", [None, [[[1.0, 2.0]]]])
def test_data_without_the_attributes_is_refused(attributes: Any) -> None:
    model = RewardModel(attribute_backbone(), head=AttributeHead(WEIGHTS), loss=RegressionLoss())
    batch = pack(random_groups()) if attributes is None else batch_with(attributes)
    found = "none" if attributes is None else 2
    with pytest.raises(ConfigError, match=f"the model predicts 3 attributes and the data set reads {found}"):
        model(batch)


def test_filler_with_attributes_counts_nothing() -> None:
    model = RewardModel(attribute_backbone(), head=AttributeHead(WEIGHTS), loss=RegressionLoss())
    batch = replace(batch_with([[[1.0, 1.0, 1.0]], [[NAN, 9.0, 9.0]]]), group_weights=torch.tensor([1.0, 0.0]))
    both, alone = model(batch), model(batch_with([[[1.0, 1.0, 1.0]]]))
    assert both.loss.item() == pytest.approx(alone.loss.item(), rel=1e-4)
    assert both.metrics["num_mse"].item() == 1
