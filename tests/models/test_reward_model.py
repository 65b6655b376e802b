from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_models import TINY, byte_tokenizer, random_groups, scores_alone, tiny_backbone
from torch import Tensor, nn

from xrlhf.data.packing import pack
from xrlhf.errors import ConfigError, ModelError
from xrlhf.losses import CenteringPenalty, RankingLoss
from xrlhf.models.loading import backbone_from_config, score_head
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer
from xrlhf.structures import PackedBatch


def batch_of(scores: list[list[float]], **options: Any) -> PackedBatch:
    """A batch whose group ``g`` has as many responses as ``scores[g]``; the ids do not matter to FixedScores."""
    return pack(random_groups([(2, (1,) * len(row)) for row in scores]), **options)


class FixedScores(RewardModel):
    """A reward model that gives the scores it is told, through a parameter, so that losses can be counted by hand."""

    def __init__(self, scores: list[list[float]], **options: Any) -> None:
        super().__init__(tiny_backbone(), **options)
        most = max(len(row) for row in scores)
        self.fixed = nn.Parameter(torch.tensor([row + [0.0] * (most - len(row)) for row in scores]))

    def outputs(self, batch: PackedBatch) -> Tensor:
        return self.fixed * batch.response_mask


def logsigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


# -------------------------------------------------------------------------------------------------- losses


def test_loss_and_metrics_of_pairs_by_hand() -> None:
    """Differences 1 and -2: losses log(1 + e^-1) = 0.3133 and log(1 + e^2) = 2.1269; one of two is ranked right."""
    scores = [[3.0, 2.0], [0.0, 2.0]]
    output = FixedScores(scores, loss=RankingLoss())(batch_of(scores))
    assert output.loss.item() == pytest.approx(0.31326 + 2.12693, abs=1e-4)
    assert output.group_losses.tolist() == pytest.approx([0.31326, 2.12693], abs=1e-4)
    assert {name: value.item() for name, value in output.metrics.items()} == pytest.approx(
        {
            "acc": 1.0,
            "margin": -1.0,
            "num_ranked": 2.0,
            "chosen_score_mean": 3.0,
            "num_chosen_score_mean": 2.0,
            "rejected_score_mean": 4.0,
            "num_rejected_score_mean": 2.0,
            "score_mean": 0.0,
            "num_score_mean": 0.0,
        }
    )
    assert not any("loss" in name for name in output.metrics)


def test_loss_of_three_responses_by_hand() -> None:
    """Pairs (2, 1), (2, 0) and (1, 0) have the differences 1, 2 and 1; the loss is their mean."""
    scores = [[2.0, 1.0, 0.0], [1.0, 1.0]]
    output = FixedScores(scores, loss=RankingLoss())(batch_of(scores))
    expected = [-(2 * logsigmoid(1) + logsigmoid(2)) / 3, math.log(2)]
    assert output.group_losses.tolist() == pytest.approx(expected)
    # A tie counts one half.
    assert output.metrics["acc"].item() == 1.5


def test_penalties_are_added() -> None:
    """One penalty or a list of them, built or as a dict."""
    scores = [[3.0, 2.0], [0.0, 2.0]]
    batch = batch_of(scores)
    plain = FixedScores(scores, loss=RankingLoss())(batch).loss.item()
    penalty = CenteringPenalty(0.5)
    extra = penalty(torch.tensor(scores), batch.response_mask, batch.ratings).sum().item()
    assert extra > 0
    as_dict = {"type": "CenteringPenalty", "weight": 0.5}
    for given, times in ((penalty, 1), (as_dict, 1), ([penalty], 1), ([penalty, as_dict], 2), (None, 0), ([], 0)):
        total = FixedScores(scores, loss={"type": "RankingLoss"}, penalty=given)(batch).loss.item()
        assert total == pytest.approx(plain + times * extra)


def test_filler_counts_nothing() -> None:
    """Loss, gradient and metrics are those of the first group alone."""
    scores = [[3.0, 2.0], [0.0, 2.0]]
    model = FixedScores(scores, loss=RankingLoss(), penalty=CenteringPenalty(0.5))
    output = model(batch_of(scores, weights=[1.0, 0.0]))
    output.loss.backward()
    alone = FixedScores(scores[:1], loss=RankingLoss(), penalty=CenteringPenalty(0.5))
    wanted = alone(batch_of(scores[:1]))
    wanted.loss.backward()
    assert output.loss.item() == pytest.approx(wanted.loss.item())
    torch.testing.assert_close(model.fixed.grad, torch.cat([alone.fixed.grad, torch.zeros(1, 2)]))
    assert {n: v.item() for n, v in output.metrics.items()} == {n: v.item() for n, v in wanted.metrics.items()}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_filler_that_is_not_finite_counts_nothing(bad: float) -> None:
    scores = [[3.0, 2.0], [bad, bad]]
    model = FixedScores(scores, loss=RankingLoss(), penalty=CenteringPenalty(0.5))
    output = model(batch_of(scores, weights=[1.0, 0.0]))
    output.loss.backward()
    assert output.loss.isfinite()
    assert model.fixed.grad.isfinite().all()
    assert all(value.isfinite() for value in output.metrics.values())


def test_a_group_that_is_not_finite_is_told_by_its_loss() -> None:
    scores = [[3.0, 2.0], [math.nan, 2.0]]
    output = FixedScores(scores, loss=RankingLoss())(batch_of(scores))
    assert output.group_losses.isfinite().tolist() == [True, False]
    assert not output.loss.isfinite()


def test_a_micro_batch_of_filler_reaches_every_weight_with_zero() -> None:
    """Ranks that wait for each other's gradients need one of every weight."""
    model = RewardModel(tiny_backbone(), loss=RankingLoss())
    model(pack(random_groups([(3, (2, 2))]), weights=[0.0])).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_absent_responses_score_zero() -> None:
    batch = pack(random_groups([(3, (2, 2, 2)), (3, (2,))]))
    scores = RewardModel(tiny_backbone()).score(batch)
    assert (scores == 0).tolist() == [[False, False, False], [False, True, True]]


def test_training_needs_a_loss() -> None:
    with pytest.raises(ModelError, match="has no loss: give one in the recipe to train it"):
        RewardModel(tiny_backbone())(pack(random_groups()))


# ------------------------------------------------------------------------------------------------ building


def test_the_backbone_may_be_a_dict() -> None:
    torch.manual_seed(0)
    fields = {**TINY, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
    spec = {"type": backbone_from_config, "model_type": "llama", "head_init": "normal", **fields}
    batch = pack(random_groups())
    torch.testing.assert_close(RewardModel(spec).score(batch), RewardModel(tiny_backbone()).score(batch))
    assert spec["model_type"] == "llama"


def test_anything_else_is_refused() -> None:
    with pytest.raises(ModelError, match="backbone must be a transformers model, got Linear"):
        RewardModel(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_the_tokenizer_is_fitted() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="<|reward|>")
    model = RewardModel(tiny_backbone(vocab_size=260), tokenizer=tokenizer)
    assert model.hf_model.get_input_embeddings().weight.shape[0] == 261
    with pytest.raises(ModelError, match="use the tokenizer that belongs to this model"):
        RewardModel(tiny_backbone(vocab_size=100), tokenizer=tokenizer)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ModelError, match="dtype must be"):
        RewardModel(tiny_backbone(), precision="bf16")


def test_checkpointing_where_there_is_none_is_refused() -> None:
    backbone = tiny_backbone()
    backbone.supports_gradient_checkpointing = False
    with pytest.raises(ModelError, match="LlamaForSequenceClassification has no gradient checkpointing"):
        RewardModel(backbone, gradient_checkpointing=True)


def test_dropout_of_the_family_is_off_in_training() -> None:
    model = RewardModel(tiny_backbone("gpt2"), loss=RankingLoss()).train()
    batch = pack(random_groups())
    assert torch.equal(model(batch).loss, model(batch).loss)


def test_the_state_is_loadable_and_complete() -> None:
    first, second = RewardModel(tiny_backbone(seed=0)), RewardModel(tiny_backbone(seed=1))
    batch = pack(random_groups())
    assert not torch.allclose(first.score(batch), second.score(batch))
    assert first.checkpoint_names() == set(first.state_dict())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.score(batch), second.score(batch))


# -------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize(
    ("family", "options", "layout"),
    [
        ("llama", {}, "packed"),
        ("llama", {"layout": "packed"}, "packed"),
        ("llama", {"layout": "padded"}, "padded"),
        ("llama", {"static_shapes": True}, "padded"),
        ("bloom", {}, "padded"),
        ("bloom", {"layout": "padded", "static_shapes": True}, "padded"),
    ],
)
def test_the_layout_and_the_attention_that_goes_with_it(family: str, options: dict[str, Any], layout: str) -> None:
    """Padded rows leave the model the attention that it was loaded with."""
    backbone = tiny_backbone(family)
    attention = backbone.config._attn_implementation
    model = RewardModel(backbone, **options)
    assert model.layout == layout
    assert (backbone.config._attn_implementation == attention) is (layout == "padded")


def test_absent_responses_score_zero_in_padded_rows() -> None:
    batch = pack(random_groups([(3, (2, 2, 2)), (3, (2,))]))
    scores = RewardModel(tiny_backbone("bloom")).score(batch)
    assert (scores == 0).tolist() == [[False, False, False], [False, True, True]]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_padded_scores_are_float32_and_the_head_computes_in_it(precision: str) -> None:
    batch = pack(random_groups())
    scores = RewardModel(tiny_backbone("bloom"), precision=precision).eval().score(batch)
    assert scores.dtype is torch.float32
    present = scores[batch.response_mask]
    assert (present != present.bfloat16().float()).any()


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ModelError, match="layout must be 'auto', 'packed' or 'padded', got 'rows'"):
        RewardModel(tiny_backbone(), layout="rows")


# ----------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_scores_are_float32_and_the_head_computes_in_it(precision: str) -> None:
    """Scores rounded to bfloat16 would be multiples of 2**-8 of their size; these are not."""
    model = RewardModel(tiny_backbone(), precision=precision).eval()
    batch = pack(random_groups())
    scores = model.score(batch)
    assert scores.dtype is torch.float32
    present = scores[batch.response_mask]
    assert (present != present.bfloat16().float()).any()


def test_autocast_is_near_float32() -> None:
    batch = pack(random_groups())
    exact = RewardModel(tiny_backbone()).eval().score(batch)
    rough = RewardModel(tiny_backbone(), precision="bfloat16").eval().score(batch)
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, rtol=0.05, atol=0.1)


def test_autocast_trains_float32_weights() -> None:
    model = RewardModel(tiny_backbone(), loss=RankingLoss(), precision="bfloat16").train()
    model(pack(random_groups())).loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_a_bfloat16_backbone_scores_with_a_float32_head() -> None:
    model = RewardModel(tiny_backbone(dtype="bfloat16")).eval()
    assert score_head(model.hf_model)[1].weight.dtype is torch.float32
    assert model.score(pack(random_groups())).dtype is torch.float32


# ------------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize(
    ("family", "config", "limit"),
    [
        ("llama", {}, 512),
        ("gpt2", {"max_position_embeddings": 128}, 128),
        ("mistral", {"sliding_window": 100}, 512),
        ("phi3", {"original_max_position_embeddings": 64}, 512),
        (
            "phi3",
            {
                "original_max_position_embeddings": 64,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
            },
            64,
        ),
    ],
    ids=["llama", "gpt2", "a window is no limit", "phi3", "phi3, two sets of rotary positions"],
)
def test_longest_conversation(family: str, config: dict[str, Any], limit: int) -> None:
    assert RewardModel(tiny_backbone(family, **config)).max_conversation_length == limit


def test_the_attention_backend_may_be_named() -> None:
    batch = pack(random_groups())
    scores = [RewardModel(tiny_backbone(), attention=name).eval().score(batch) for name in ("blockwise", "sdpa")]
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match="'flash_attn' runs on CUDA, not on cpu"):
        RewardModel(tiny_backbone(), attention="flash_attn").score(batch)
    with pytest.raises(ConfigError, match="no attention backend is called 'fast'"):
        RewardModel(tiny_backbone(), attention="fast")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_conversation_beyond_the_window_is_computed_with_it(layout: str) -> None:
    groups = random_groups([(8, (4, 5))])
    batch = pack(groups)
    plain = tiny_backbone("mistral", sliding_window=6).eval()
    windowless = scores_alone(tiny_backbone("mistral").eval(), groups, batch)
    alone = scores_alone(plain, groups, batch)
    assert (alone - windowless).abs().min() > 1e-3
    scores = RewardModel(plain, layout=layout).eval().score(batch)
    torch.testing.assert_close(scores, alone, rtol=1e-5, atol=1e-5)
