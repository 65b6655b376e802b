"""Models that are built by their shapes alone: as large and as packed as the real ones, without a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny_models import FAMILIES, random_groups, tiny_backbone, tiny_causal_lm, with_targets
from torch import nn

from xrlhf.data.packing import pack
from xrlhf.errors import ModelError
from xrlhf.losses import RankingLoss
from xrlhf.losses.policy import DPOLoss
from xrlhf.models import (
    PolicyModel,
    RewardModel,
    backbone_from_config,
    backbone_from_pretrained,
    causal_lm_from_pretrained,
)
from xrlhf.models.shapes import are_shapes_alone, batch_on_paper, paper_mode, put_on_paper, shapes_alone


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "phi3", "bloom", "mpt", "internlm2"])
def test_the_layout_and_the_weights_are_those_of_the_real_model(family: str) -> None:
    assert family in FAMILIES
    lora = {"r": 2} if family == "llama" else None
    real = RewardModel(tiny_backbone(family), loss=RankingLoss(), lora=lora)
    with shapes_alone():
        assert are_shapes_alone()
        planned = RewardModel(tiny_backbone(family), loss=RankingLoss(), lora=lora)
    assert not are_shapes_alone()
    assert planned.layout == real.layout
    described = [
        {name: (weight.shape, weight.dtype, weight.requires_grad) for name, weight in model.named_parameters()}
        for model in (planned, real)
    ]
    assert described[0] == described[1]
    assert all(are_shapes_alone(weight) for weight in planned.parameters())


def test_a_config_is_enough(tmp_path: Path) -> None:
    tiny_backbone().config.save_pretrained(tmp_path)
    with shapes_alone():
        model = backbone_from_pretrained(str(tmp_path), dtype="bfloat16")
    assert model.num_labels == 1
    assert are_shapes_alone(next(model.parameters()))
    assert next(model.parameters()).dtype is torch.bfloat16
    assert model.score.weight.dtype is torch.float32


def test_a_config_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with shapes_alone():
        with pytest.raises(ModelError, match=r"^no config could be loaded from 'nobody/nothing'"):
            backbone_from_pretrained("nobody/nothing")
        with pytest.raises(ModelError, match="no config could be loaded from"):
            backbone_from_pretrained(str(tmp_path))


def test_paper_leaves_no_trace_in_attention() -> None:
    """The masks that attention keeps for a layout have values when a real model asks for the same layout."""
    batch = pack(random_groups())
    with shapes_alone():
        planned = RewardModel(tiny_backbone(), loss=RankingLoss())
    mode = paper_mode()
    put_on_paper(planned, mode)
    with mode:
        assert planned.outputs(batch_on_paper(batch, mode)).shape == batch.last_index.shape
    real = RewardModel(tiny_backbone(), loss=RankingLoss())
    assert bool(real.outputs(batch).isfinite().all())


def test_shared_weights_stay_shared() -> None:
    with shapes_alone():
        pair = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    pair[1].weight = pair[0].weight
    put_on_paper(pair, paper_mode())
    assert pair[1].weight is pair[0].weight
    assert pair[0].weight.device.type == "cpu"
    assert pair[0].weight.requires_grad


def test_dropped_names_are_refused_as_ever() -> None:
    with shapes_alone(), pytest.raises(ModelError, match="hidden_sise"):
        backbone_from_config("llama", hidden_sise=8)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom", "internlm2"])
@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": "all-linear"}])
def test_a_policy_by_its_shapes(family: str, lora: dict[str, Any] | None) -> None:
    """With the copy of itself that it is compared with, where it has no adapters."""
    real = PolicyModel(tiny_causal_lm(family), loss=DPOLoss(), lora=lora)
    with shapes_alone():
        planned = PolicyModel(tiny_causal_lm(family), loss=DPOLoss(), lora=lora)
    assert (planned.layout, planned.reference_layout) == (real.layout, real.reference_layout)
    described = [
        {name: (weight.shape, weight.dtype, weight.requires_grad) for name, weight in model.named_parameters()}
        for model in (planned, real)
    ]
    assert described[0] == described[1]
    assert all(are_shapes_alone(weight) for weight in planned.parameters())
    batch = pack(with_targets(random_groups()))
    assert batch.target_index is not None
    mode = paper_mode()
    put_on_paper(planned, mode)
    with mode:
        policy, reference = planned(batch_on_paper(batch, mode), mode="outputs")
        assert policy.shape == reference.shape == batch.target_index.shape
        policy.sum().backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in planned.backbone.parameters())


def test_the_config_of_a_language_model_is_enough(tmp_path: Path) -> None:
    """Also where an adapter names it; and a cached reference needs no value either."""
    tiny_causal_lm().config.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    named = LoraConfig(base_model_name_or_path=str(tmp_path / "base"), task_type="CAUSAL_LM", target_modules=["q_proj"])
    named.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    for name in ("base", "adapter"):
        with shapes_alone():
            model = causal_lm_from_pretrained(str(tmp_path / name), dtype="bfloat16")
            PolicyModel(model, loss=DPOLoss(), reference="cached")
        assert type(model).__name__ == "LlamaForCausalLM"
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        assert all(are_shapes_alone(weight) for weight in model.parameters())


def test_the_config_of_a_reward_model_is_no_language_model(tmp_path: Path) -> None:
    config = tiny_backbone().config
    config.architectures = ["LlamaForSequenceClassification"]
    config.save_pretrained(tmp_path)
    with shapes_alone(), pytest.raises(ModelError, match="is a reward model or another classifier"):
        causal_lm_from_pretrained(str(tmp_path))
