"""Packed groups give what every conversation gives by itself through transformers' own forward pass.

Everything is float32, with weights large enough for attention to show in the scores; a separate pad token keeps the
last token of a conversation the one that transformers scores.
"""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    SHAPES,
    byte_tokenizer,
    compare_gradients,
    conversations_of,
    gradients_of,
    random_groups,
    scores_alone,
    tiny_backbone,
)
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.map_fns import hh_map_fn
from xrlhf.data.packing import pack
from xrlhf.losses import RankingLoss
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer
from xrlhf.structures import PackedBatch, TokenizedGroup

PACKING_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        family: (family, {})
        for family in ["llama", "qwen2", "qwen3", "phi3", "opt", "gpt2", "gpt_neox", "gemma", "internlm2"]
    },
    **{family: (family, {}) for family in ["gemma2", "gemma3_text", "gpt_oss", "mixtral", "mistral"]},
    "mistral, a window": ("mistral", {"sliding_window": 6}),
    "qwen2, a window in one layer": (
        "qwen2",
        {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "gemma2, windows and soft caps": ("gemma2", {"sliding_window": 5, "attn_logit_softcapping": 0.7}),
    "gemma3, windows": ("gemma3_text", {"sliding_window": 7}),
    "gpt_oss, windows and sinks": ("gpt_oss", {"sliding_window": 4}),
}
"""What is packed, each with a model type and options; the windows are shorter than most conversations."""


def packed_and_alone(
    backbone: PreTrainedModel, groups: list[TokenizedGroup], **options: Any
) -> tuple[RewardModel, PreTrainedModel, PackedBatch]:
    """A packed reward model and the plain model it came from, both with gradients of the summed ranking loss."""
    plain = copy.deepcopy(backbone).eval()
    model = RewardModel(backbone, loss=RankingLoss(), **options).train()
    batch = pack(groups)
    output = model(batch)
    output.loss.backward()

    alone = scores_alone(plain, groups, batch)
    losses = RankingLoss()(alone, batch.response_mask, batch.ratings)
    losses.sum().backward()

    assert alone[batch.response_mask].std() > 0.1
    torch.testing.assert_close(model.score(batch), alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.group_losses, losses.detach(), rtol=1e-5, atol=1e-5)
    return model, plain, batch


@pytest.mark.parametrize("name", PACKING_FAMILIES)
def test_scores_and_gradients(name: str) -> None:
    """Five groups of two to four responses; training mode, with the dropout that gpt2, opt and others come with."""
    family, config = PACKING_FAMILIES[name]
    model, plain, _ = packed_and_alone(tiny_backbone(family, **config), random_groups())
    compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


@pytest.mark.parametrize("num_responses", [2, 4, 8])
@pytest.mark.parametrize("name", ["llama", "gemma2, windows and soft caps", "gpt_oss, windows and sinks", "mixtral"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_group_sizes(name: str, num_responses: int, checkpointing: bool) -> None:
    """K answers to a prompt of 9, each of another length."""
    family, config = PACKING_FAMILIES[name]
    groups = random_groups([(9, tuple(range(1, num_responses + 1))), (2, tuple(range(num_responses, 0, -1)))])
    backbone = tiny_backbone(family, **config)
    model, plain, _ = packed_and_alone(backbone, groups, gradient_checkpointing=checkpointing)
    compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers(checkpointing: bool) -> None:
    """Batches of three sizes through one program; state keeps its names."""
    backbone = tiny_backbone("qwen3")
    names = set(RewardModel(copy.deepcopy(backbone)).state_dict())
    plain = copy.deepcopy(backbone).eval()
    model = RewardModel(backbone, loss=RankingLoss(), compile=True, gradient_checkpointing=checkpointing).train()
    assert set(model.state_dict()) == names
    for groups in (random_groups(), random_groups([(9, (4, 5))]), random_groups([(3, (1, 7)), (20, (6, 2, 8))])):
        batch = pack(groups)
        model.zero_grad()
        plain.zero_grad()
        model(batch).loss.backward()
        alone = scores_alone(plain, groups, batch)
        RankingLoss()(alone, batch.response_mask, batch.ratings).sum().backward()
        torch.testing.assert_close(model.score(batch), alone, rtol=1e-5, atol=1e-5)
        compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2, windows and soft caps", "gpt_oss, windows and sinks"])
def test_bfloat16_within_its_rounding(name: str) -> None:
    """Packed in bfloat16 is about as far from float32 as the plain model in bfloat16 is."""
    family, config = PACKING_FAMILIES[name]
    groups = random_groups()
    backbone = tiny_backbone(family, **config)
    plain = copy.deepcopy(backbone).eval()
    batch = pack(groups)
    model = RewardModel(backbone, precision="bfloat16").eval()
    with torch.no_grad():
        exact = scores_alone(plain, groups, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = scores_alone(plain, groups, batch).float()
        packed_error = (model.score(batch) - exact).square().mean().sqrt()
        plain_error = (rounded - exact).square().mean().sqrt()
    assert 0 < packed_error < 1.5 * plain_error


@pytest.mark.parametrize("window", [20, 19, 5])
def test_windows(window: int) -> None:
    """The longest conversation has 12 + 8 tokens; a window counts over the prompt and the response as over one text."""
    assert max(prompt + size for prompt, sizes in SHAPES for size in sizes) == 20
    model, plain, _ = packed_and_alone(tiny_backbone("mistral", sliding_window=window), random_groups())
    compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_gradient_checkpointing_changes_nothing(family: str) -> None:
    model, plain, _ = packed_and_alone(tiny_backbone(family), random_groups(), gradient_checkpointing=True)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters(checkpointing: bool) -> None:
    """The gradients of adapters and head equal those of the same adapted model on one conversation at a time."""
    groups = random_groups()
    model = RewardModel(
        tiny_backbone(),
        loss=RankingLoss(),
        lora={"r": 4, "init_lora_weights": False},
        gradient_checkpointing=checkpointing,
    ).train()
    batch = pack(groups)
    model(batch).loss.backward()
    scores, packed = (
        model.score(batch).detach(),
        {n: g.clone() for n, g in gradients_of(model).items() if g is not None},
    )

    model.zero_grad()
    model.hf_model.set_attn_implementation("sdpa")
    alone = scores_alone(model.backbone, groups, batch)
    RankingLoss()(alone, batch.response_mask, batch.ratings).sum().backward()

    torch.testing.assert_close(scores, alone.detach(), rtol=1e-5, atol=1e-5)
    assert any("lora_A" in name for name in packed)
    assert any("score" in name for name in packed)
    compare_gradients(packed, gradients_of(model))


def test_without_adapters_trained_the_base_gives_the_same() -> None:
    """Adapters begin at zero, so a wrapped model scores as the model it wraps."""
    batch = pack(random_groups())
    scores = [
        RewardModel(tiny_backbone(), lora=lora).eval().score(batch) for lora in (None, {"r": 4}, {"use_dora": True})
    ]
    for other in scores[1:]:
        torch.testing.assert_close(scores[0], other, rtol=1e-5, atol=1e-5)


def test_the_neighbours_in_a_row_do_not_matter() -> None:
    """A group scores the same by itself, in another order and beside other groups."""
    groups = random_groups()
    model = RewardModel(tiny_backbone()).eval()
    whole = model.score(pack(groups)).detach()
    backwards = model.score(pack(groups[::-1])).detach().flip(0)
    torch.testing.assert_close(whole, backwards, rtol=1e-5, atol=1e-5)
    for index, group in enumerate(groups):
        by_itself = model.score(pack([group]))[0].detach()
        torch.testing.assert_close(whole[index, : len(by_itself)], by_itself, rtol=1e-5, atol=1e-5)


def test_sharing_the_prompt_changes_nothing() -> None:
    """The same conversations with nothing shared, each a group of one without a prompt."""
    groups = random_groups()
    apart = [TokenizedGroup(ids[:0].int().numpy(), (ids.int().numpy(),)) for g in groups for ids in conversations_of(g)]
    model = RewardModel(tiny_backbone()).eval()
    batch = pack(groups)
    shared = model.score(batch)[batch.response_mask]
    torch.testing.assert_close(shared, model.score(pack(apart))[:, 0], rtol=1e-5, atol=1e-5)


def padded_pair_loss(model: PreTrainedModel, groups: list[TokenizedGroup]) -> Tensor:
    """``mean(-log sigmoid(c - r))`` as any reward trainer computes it: one right-padded batch, plain transformers."""
    chosen_then_rejected = itertools.chain.from_iterable(zip(*map(conversations_of, groups), strict=True))
    rows = list(chosen_then_rejected)
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    scores = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, 0]
    chosen, rejected = scores.chunk(2)
    return -logsigmoid(chosen - rejected).mean()


def check_first_step(groups: list[TokenizedGroup], backbone: PreTrainedModel) -> None:
    """Loss and gradients of one step over pairs equal those of a padded batch."""
    plain = copy.deepcopy(backbone).eval()
    model = RewardModel(backbone, loss=RankingLoss()).train()
    packed = model(pack(groups)).loss / len(groups)
    padded = padded_pair_loss(plain, groups)
    assert abs(padded.item() - 0.6931) > 1e-3
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    packed.backward()
    padded.backward()
    compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


def test_first_step_on_eight_random_pairs() -> None:
    """Lengths as of the practice data: prompts of 8 to 40 tokens, answers of 4 to 20."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (int(torch.randint(8, 41, (), generator=generator)), torch.randint(4, 21, (2,), generator=generator).tolist())
        for _ in range(8)
    ]
    check_first_step(random_groups(shapes), tiny_backbone())


def test_first_step_from_a_zero_head_is_the_logarithm_of_two() -> None:
    """All scores are 0, so every pair costs -log sigmoid(0) = log 2."""
    groups = random_groups([(5, (3, 4))] * 8)
    model = RewardModel(tiny_backbone(head_init="zero"), loss=RankingLoss())
    torch.testing.assert_close(model(pack(groups)).loss / 8, torch.tensor(2.0).log())


@pytest.mark.shared_data
def test_first_step_on_eight_real_pairs(shared_data: Path) -> None:
    """Eight short pairs of hh-rlhf through the map function, the chat template and the byte tokenizer."""
    file = shared_data / "hh-rlhf" / "harmless-base.test.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"hh-rlhf not found at {file}: set XRLHF_SHARED_DATA to the folder of real data sets")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, 400)]
    rows = [row for row in rows if max(len(row["chosen"]), len(row["rejected"])) < 300][:8]
    encoder = GroupEncoder(prepare_tokenizer(byte_tokenizer(), ending="<|reward|>"), max_length=512)
    groups = encoder.encode([hh_map_fn(row) for row in rows])
    assert [type(group) for group in groups] == [TokenizedGroup] * 8
    check_first_step([group for group in groups if isinstance(group, TokenizedGroup)], tiny_backbone())


def test_shapes_cover_two_to_four_responses() -> None:
    assert {len(sizes) for _, sizes in SHAPES} == {2, 3, 4}
