"""Adapters on bases in 4 and 8 bits."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer, random_groups, scores_alone, tiny_backbone
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from xrlhf.data.packing import pack
from xrlhf.engine.checkpoint import load_strictly
from xrlhf.errors import DeviceError, MissingExtraError, ModelError
from xrlhf.export import save_adapter, save_reward_model
from xrlhf.losses import RankingLoss
from xrlhf.models import quantised
from xrlhf.models.loading import backbone_from_pretrained
from xrlhf.models.quantised import is_quantised, quantisation_config
from xrlhf.models.reward_model import RewardModel

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'xrlhf[quantised]'"
)

FORMATS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True},
    "nf4, twice": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
TOLERANCE = {"int8": 0.15}
"""In 8 bits the layers round what they read too, which a merged model does not; in 4 bits only the weights."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised") / "base"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.05}
    config = tiny_backbone(**sizes).config.to_dict()
    for name in ("id2label", "label2id"):
        del config[name]
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    return folder


def reward_model(base: Path, options: dict[str, Any], seed: int = 1, **lora: Any) -> RewardModel:
    torch.manual_seed(seed)
    backbone = backbone_from_pretrained(str(base), head_init="normal", quantization=options)
    return RewardModel(backbone, loss=RankingLoss(), lora={"r": 4, **lora})


def train(model: RewardModel) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for step in range(2):
        model(pack(random_groups(seed=step))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("name", "lora"),
    [*((name, {}) for name in FORMATS), ("nf4", {"use_dora": True}), ("nf4, twice", {"use_dora": True})],
)
def test_trained_saved_resumed_and_merged(name: str, lora: dict[str, Any], base: Path, tmp_path: Path) -> None:
    model = reward_model(base, FORMATS[name], **lora)
    assert is_quantised(model.hf_model)
    linear = model.hf_model.model.layers[0].self_attn.q_proj.base_layer
    assert linear.weight.dtype in (torch.uint8, torch.int8)
    head = model.hf_model.score.weight
    assert head.dtype is torch.float32
    before = head.detach().clone()
    untrained = model.eval().score(pack(random_groups())).detach()
    train(model)
    assert not torch.equal(head, before)
    wanted = model.score(pack(random_groups())).detach()
    assert (wanted - untrained).abs().max() > 0.01

    names = model.checkpoint_names()
    assert not any("base_layer" in key for key in names)
    state = {key: value.clone() for key, value in model.state_dict().items() if key in names}
    again = reward_model(base, FORMATS[name], seed=2, **lora).eval()
    load_strictly(again, state, again.checkpoint_names(), "the checkpoint")
    torch.testing.assert_close(again.score(pack(random_groups())).detach(), wanted, rtol=1e-5, atol=1e-5)

    save_reward_model(model, byte_tokenizer(), tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert not is_quantised(loaded)
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    with torch.no_grad():
        scores = scores_alone(loaded, random_groups(), pack(random_groups()))
    tolerance = TOLERANCE.get(name, 1e-4)
    torch.testing.assert_close(scores, wanted, rtol=tolerance, atol=tolerance)
    assert torch.equal(model.score(pack(random_groups())).detach(), wanted), "saving changed the model"


@needs_bitsandbytes
def test_the_adapter_by_itself_names_its_difference(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = reward_model(base, FORMATS["nf4"])
    train(model)
    wanted = model.score(pack(random_groups())).detach()
    save_adapter(model, byte_tokenizer(), tmp_path / "adapter")
    assert "was trained on a quantised base: on the base in full precision the model is slightly another" in caplog.text
    on_full = RewardModel(backbone_from_pretrained(str(tmp_path / "adapter"))).eval()
    difference = (on_full.score(pack(random_groups())).detach() - wanted).abs().max()
    assert 1e-4 < difference < 2
    with pytest.raises(ModelError, match="is an adapter, which cannot be put on a quantised base: merge it first"):
        backbone_from_pretrained(str(tmp_path / "adapter"), quantization=FORMATS["nf4"])


@needs_bitsandbytes
def test_a_quantised_base_is_trained_through_adapters_only(base: Path) -> None:
    RewardModel(backbone_from_pretrained(str(base), quantization=FORMATS["nf4"]))
    backbone = backbone_from_pretrained(str(base), quantization=FORMATS["nf4"])
    with pytest.raises(ModelError, match=r"trained through adapters only: give lora=dict\(\.\.\.\)"):
        RewardModel(backbone, loss=RankingLoss())


@needs_bitsandbytes
def test_adapters_that_would_take_something_out_of_the_base(base: Path) -> None:
    with pytest.raises(ModelError, match="moves a part of the base into the adapters, which a quantised base cannot"):
        reward_model(base, FORMATS["nf4"], init_lora_weights="pissa")


@needs_bitsandbytes
def test_dora_in_8_bits_on_the_cpu_is_refused(base: Path) -> None:
    with pytest.raises(ModelError, match="DoRA on a base in 8 bits does not work on the CPU: hold the base in 4 bits"):
        reward_model(base, FORMATS["int8"], use_dora=True)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must say one of load_in_4bit=True and load_in_8bit=True"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "must say one of load_in_4bit=True and load_in_8bit=True"),
        ({"load_in_4bit": True, "bits": 4}, "quantization has no option 'bits': it takes those of"),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "int4"},
            "bnb_4bit_quant_type must be 'nf4' or 'fp4', got 'int4'",
        ),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        quantisation_config(options, ["score"])


def test_the_package_that_is_missing_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs bitsandbytes, .*: pip install 'xrlhf\[quantised\]', or leave"):
        backbone_from_pretrained(str(base), quantization={"load_in_4bit": True})


def pretend(monkeypatch: pytest.MonkeyPatch, devices: set[str]) -> None:
    """A bitsandbytes that computes on ``devices``."""
    package = types.ModuleType("bitsandbytes")
    package.__version__ = "0.1"  # type: ignore[attr-defined]
    package.supported_torch_devices = devices  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: package)


def test_a_device_it_cannot_compute_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"tpu"})
    with pytest.raises(DeviceError, match=r"this bitsandbytes \(0\.1\) computes on tpu, and this machine has .*cpu"):
        quantisation_config({"load_in_8bit": True}, ["score"])


def test_the_head_and_what_else_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"cpu"})
    config = quantisation_config({"load_in_4bit": True, "llm_int8_skip_modules": ["o_proj"]}, ["score", "classifier"])
    assert config.llm_int8_skip_modules == ["o_proj", "score", "classifier"]
    assert config.bnb_4bit_quant_type == "nf4"
