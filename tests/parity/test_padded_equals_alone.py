"""Padded rows give what every conversation gives by itself through transformers' own forward pass.

Everything is float32 unless said otherwise, with weights large enough for attention to show in the scores.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import compare_gradients, gradients_of, random_groups, scores_alone, tiny_backbone
from torch import Tensor, nn
from transformers import PreTrainedModel

from xrlhf.data.packing import pack
from xrlhf.losses import RankingLoss
from xrlhf.models.reward_model import RewardModel
from xrlhf.structures import PackedBatch

MIXED = [(7, (4, 6)), (3, (1, 5, 2, 7)), (12, (3, 3, 8, 1, 2, 9, 4, 5)), (0, (2, 5)), (1, (4,))]
"""K = 2, 4, 8, 2 and 1; conversations of 2 to 21 tokens. The group of one has no pair and costs nothing."""

NEVER_PACKED = ["bloom", "falcon", "gptj", "gpt_neo", "mpt"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in [*NEVER_PACKED, "llama", "opt", "gpt2", "gemma2", "gemma3_text", "mixtral"]},
    "falcon with alibi": ("falcon", {"alibi": True}),
    "falcon of 2023": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mistral with a window": ("mistral", {"sliding_window": 5}),
    "gemma2 with a window": ("gemma2", {"sliding_window": 5}),
    "mistral in eager mode": ("mistral", {"sliding_window": 5, "attn_implementation": "eager"}),
}


def backbone_of(name: str) -> PreTrainedModel:
    family, config = FAMILIES[name]
    config = dict(config)
    attention = config.pop("attn_implementation", None)
    model = tiny_backbone(family, **config)
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


def padded_and_alone(
    backbone: PreTrainedModel, batch: PackedBatch | None = None, **options: Any
) -> tuple[RewardModel, PreTrainedModel]:
    """A padded reward model and the plain model it came from, both with gradients of the summed ranking loss."""
    groups = random_groups(MIXED)
    batch = pack(groups) if batch is None else batch
    plain = copy.deepcopy(backbone).eval()
    model = RewardModel(backbone, loss=RankingLoss(), layout="padded", **options).train()
    output = model(batch)
    output.loss.backward()

    alone = scores_alone(plain, groups, batch)
    losses = RankingLoss()(alone, batch.response_mask, batch.ratings)
    (losses * batch.group_weights).sum().backward()

    assert alone[batch.response_mask].std() > 0.1
    torch.testing.assert_close(model.score(batch), alone, rtol=1e-5, atol=1e-5)
    counted = batch.group_weights > 0
    torch.testing.assert_close(output.group_losses[counted], losses.detach()[counted], rtol=1e-5, atol=1e-5)
    return model, plain


@contextmanager
def backbone_calls(model: RewardModel) -> Iterator[list[tuple[int, int]]]:
    """The (rows, length) of every forward pass of the backbone."""
    shapes: list[tuple[int, int]] = []
    backbone = getattr(model.hf_model, model.hf_model.base_model_prefix)

    def note(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        shapes.append(tuple(options["input_ids"].shape))

    handle = backbone.register_forward_pre_hook(note, with_kwargs=True)
    yield shapes
    handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_and_gradients(name: str) -> None:
    """Groups of one to eight responses, in several forward passes; training mode."""
    model, plain = padded_and_alone(backbone_of(name))
    compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


@pytest.mark.parametrize(
    "name", ["bloom", "falcon", "opt", "gpt2", "gemma2 with a window", "mistral with a window", "mistral in eager mode"]
)
def test_static_shapes_change_nothing(name: str) -> None:
    """Most of what is computed is padding, far beyond the windows, and rows that nothing reads."""
    model, plain = padded_and_alone(backbone_of(name), static_shapes=True)
    compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


@pytest.mark.parametrize("family", NEVER_PACKED)
def test_what_cannot_be_packed_is_padded_by_itself(family: str) -> None:
    model = RewardModel(tiny_backbone(family)).eval()
    assert model.layout == "padded"
    groups = random_groups(MIXED)
    batch = pack(groups)
    with torch.no_grad():
        torch.testing.assert_close(
            model.score(batch), scores_alone(model.hf_model, groups, batch), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("family", ["bloom", "falcon", "llama"])
@pytest.mark.parametrize("static", [False, True])
def test_gradient_checkpointing_changes_nothing(family: str, static: bool) -> None:
    model, plain = padded_and_alone(tiny_backbone(family), gradient_checkpointing=True, static_shapes=static)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


@pytest.mark.parametrize("family", ["bloom", "falcon", "llama"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters(family: str, checkpointing: bool) -> None:
    """The gradients of adapters and head equal those of the same adapted model on one conversation at a time."""
    groups = random_groups(MIXED)
    model = RewardModel(
        tiny_backbone(family),
        loss=RankingLoss(),
        lora={"r": 4, "init_lora_weights": False},
        gradient_checkpointing=checkpointing,
        layout="padded",
    ).train()
    batch = pack(groups)
    model(batch).loss.backward()
    scores = model.score(batch).detach()
    padded = {name: g.clone() for name, g in gradients_of(model).items() if g is not None}

    model.zero_grad()
    alone = scores_alone(model.backbone, groups, batch)
    RankingLoss()(alone, batch.response_mask, batch.ratings).sum().backward()

    torch.testing.assert_close(scores, alone.detach(), rtol=1e-5, atol=1e-5)
    assert any("lora_A" in name for name in padded)
    assert any("score" in name for name in padded)
    compare_gradients(padded, gradients_of(model))


def test_what_is_computed_again_drops_the_same() -> None:
    """With dropout in the adapters, the gradient is that of keeping everything, under the same seed."""
    gradients, losses = [], []
    for keeps_everything in (True, False):
        torch.manual_seed(1)
        model = RewardModel(
            tiny_backbone("bloom"),
            loss=RankingLoss(),
            lora={"r": 4, "lora_dropout": 0.3, "init_lora_weights": False},
        ).train()
        # Slices are not computed again where the model says that its layers are.
        model.gradient_checkpointing = keeps_everything
        output = model(pack(random_groups(MIXED)))
        output.loss.backward()
        losses.append(output.loss.detach())
        gradients.append(gradients_of(model))
    assert torch.equal(losses[0], losses[1])
    compare_gradients(gradients[1], gradients[0])


def test_filler_counts_nothing() -> None:
    weights = [1, 0, 1, 1, 0]
    model, plain = padded_and_alone(tiny_backbone("bloom"), pack(random_groups(MIXED), weights=weights))
    compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


def test_a_micro_batch_of_filler_reaches_every_weight_with_zero() -> None:
    model = RewardModel(tiny_backbone("bloom"), loss=RankingLoss())
    model(pack(random_groups([(3, (2, 2))]), weights=[0.0])).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_padded_equals_packed() -> None:
    batch = pack(random_groups(MIXED))
    models = [RewardModel(tiny_backbone(), loss=RankingLoss(), layout=layout) for layout in ("packed", "padded")]
    for model in models:
        model(batch).loss.backward()
    torch.testing.assert_close(models[0].score(batch), models[1].score(batch), rtol=1e-5, atol=1e-5)
    compare_gradients(gradients_of(models[1]), gradients_of(models[0]))


@pytest.mark.parametrize("family", ["bloom", "falcon", "llama"])
def test_autocast_stays_within_its_own_rounding(family: str) -> None:
    """Scores in bfloat16 are as far from float32 padded as they are alone, and the head still computes in float32."""
    groups = random_groups(MIXED)
    batch = pack(groups)
    plain = tiny_backbone(family).eval()
    model = RewardModel(copy.deepcopy(plain), precision="bfloat16", layout="padded").eval()
    with torch.no_grad():
        exact = scores_alone(plain, groups, batch)
        with torch.autocast("cpu", torch.bfloat16):
            alone = scores_alone(plain, groups, batch).float()
        padded = model.score(batch)
    assert padded.dtype is torch.float32
    rounding = (alone - exact).norm()
    assert rounding > 0
    assert 0 < (padded - exact).norm() < 2 * rounding


# -------------------------------------------------------------------------------- forward passes and memory


def test_passes_are_about_as_large_as_the_packed_row() -> None:
    """12 + 8 x 3 tokens packed are 8 conversations of 15: two fit into 36 tokens."""
    batch = pack(random_groups([(12, (3,) * 8)]))
    model = RewardModel(tiny_backbone("bloom")).eval()
    with torch.no_grad(), backbone_calls(model) as shapes:
        model.score(batch)
    assert batch.num_tokens == 36
    assert shapes == [(2, 15)] * 4


def test_one_pass_where_all_processes_must_make_equally_many() -> None:
    batch = pack(random_groups(MIXED))
    model = RewardModel(tiny_backbone("bloom")).eval()
    several = model.score(batch).detach()
    model.single_forward = True
    with backbone_calls(model) as shapes:
        torch.testing.assert_close(model.score(batch), several, rtol=1e-5, atol=1e-5)
    assert shapes == [(17, 21)]


def test_static_shapes_are_few() -> None:
    model = RewardModel(tiny_backbone("bloom"), static_shapes=True).eval()
    with torch.no_grad(), backbone_calls(model) as shapes:
        for seed in range(40):
            sizes = torch.randint(1, 90, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
            model.score(pack(random_groups([(sizes[0], sizes[1:5]), (sizes[5], sizes[6:])], seed=seed)))
    assert {length for _, length in shapes} <= {64, 96, 128, 192}
    assert len(set(shapes)) <= 16 < len(shapes)


def test_static_shapes_end_with_the_positions() -> None:
    """A model of 20 positions: 21 would have no embedding."""
    groups = random_groups([(12, (8, 3))])
    batch = pack(groups)
    model = RewardModel(tiny_backbone("gpt2", max_position_embeddings=20), layout="padded", static_shapes=True).eval()
    with torch.no_grad(), backbone_calls(model) as shapes:
        scores = model.score(batch)
    assert {length for _, length in shapes} == {20}
    torch.testing.assert_close(scores, scores_alone(model.hf_model, groups, batch), rtol=1e-5, atol=1e-5)


def kept_for_backward(model: RewardModel, batch: PackedBatch) -> int:
    """Numbers that autograd keeps between the forward and the backward pass, weights aside."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # What is kept lives as long as the loss does, so that no two tensors share an address.
        loss = model(batch).loss
    loss.backward()
    return sum(kept.values())


def test_a_repeated_prompt_needs_no_more_memory() -> None:
    """Eight answers to a prompt of 60 tokens are 8 x 64 padded tokens and 92 packed ones."""
    batch = pack(random_groups([(60, (4,) * 8)]))
    model = RewardModel(tiny_backbone("bloom"), loss=RankingLoss()).train()
    bounded = kept_for_backward(model, batch)
    model.single_forward = True
    assert bounded < 0.3 * kept_for_backward(model, batch)
