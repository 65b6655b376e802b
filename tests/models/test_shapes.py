"""Models that are built by their shapes alone: as large and as packed as the real ones, without a weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, random_groups, tiny_backbone
from torch import nn

from xrlhf.data.packing import pack
from xrlhf.errors import ModelError
from xrlhf.losses import RankingLoss
from xrlhf.models import RewardModel, backbone_from_config, backbone_from_pretrained
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
