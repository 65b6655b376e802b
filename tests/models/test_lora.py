from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer, random_groups, tiny_backbone
from torch import Tensor

from xrlhf.data.packing import pack
from xrlhf.engine.checkpoint import load_strictly
from xrlhf.errors import ModelError
from xrlhf.losses import RankingLoss
from xrlhf.models.loading import backbone_from_pretrained
from xrlhf.models.lora import base_is_untouched
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all-linear": {"target_modules": "all-linear", "r": 4},
    "a list": {"target_modules": ["q_proj", "v_proj"], "r": 4},
    "a pattern": {"target_modules": r".*(q_proj|score)", "r": 4},
    "the head as target": {"target_modules": ["q_proj", "score"], "r": 4},
    "head named": {"target_modules": ["q_proj"], "modules_to_save": ["score"]},
    "embedding beside it": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "one name": {"target_modules": ["q_proj"], "modules_to_save": "embed_tokens"},
    "task of another kind": {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"},
    "dora": {"target_modules": ["q_proj"], "use_dora": True},
    "biases and dropout": {"target_modules": ["q_proj"], "bias": "all", "lora_dropout": 0.1},
    "one token": {"target_modules": ["q_proj"], "trainable_token_indices": [7]},
    "pissa": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
}
MOVES_BASE = ("pissa",)


def reward_model(base: Path | None, seed: int, lora: dict[str, Any]) -> RewardModel:
    """Adapters and head from ``seed``; the base from a directory, or from its config and the same seed."""
    torch.manual_seed(seed)
    if base is None:
        backbone = tiny_backbone(seed=seed)
    else:
        backbone = backbone_from_pretrained(str(base), head_init="normal")
    return RewardModel(backbone, loss=RankingLoss(), lora=lora)


def train(model: RewardModel, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for step in range(steps):
        model(pack(random_groups(seed=step))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def checkpoint_of(model: RewardModel) -> dict[str, Tensor]:
    names = model.checkpoint_names()
    state = model.state_dict()
    assert names <= set(state)
    return {name: state[name].clone() for name in names}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model on disk, without a head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("base")
    config = {k: v for k, v in tiny_backbone().config.to_dict().items() if k not in ("id2label", "label2id")}
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", OPTIONS)
def test_the_head_is_trained_and_saved(name: str, base: Path) -> None:
    """Three steps, a checkpoint, another seed: the scores are those that were trained."""
    model = reward_model(base, 1, OPTIONS[name])
    head = model.hf_model.score
    before = {key: value.clone() for key, value in model.state_dict().items()}
    untrained = model.eval().score(pack(random_groups()))
    train(model)
    trained = model.score(pack(random_groups()))
    assert head.weight.requires_grad
    assert not torch.allclose(trained, untrained, atol=1e-2)

    state = checkpoint_of(model)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.endswith("score.modules_to_save.default.weight") for key in changed)
    # Whatever training changed is in the checkpoint.
    assert changed <= set(state)

    again = reward_model(base, 2, OPTIONS[name]).eval()
    assert not torch.allclose(again.score(pack(random_groups())), trained, atol=1e-3)
    load_strictly(again, state, again.checkpoint_names(), "the checkpoint")
    torch.testing.assert_close(again.score(pack(random_groups())), trained, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_a_checkpoint_holds(name: str, base: Path) -> None:
    """Adapters and the trained copy of the head; the base as well where the adapters took something out of it."""
    model = reward_model(base, 0, OPTIONS[name])
    names = model.checkpoint_names()
    assert any("score.modules_to_save" in key for key in names)
    assert any("lora_A" in key for key in names)
    untouched = name not in MOVES_BASE
    assert base_is_untouched(model.backbone) == untouched
    assert any("k_proj.base_layer.weight" in key or "k_proj.weight" in key for key in names) != untouched
    assert (names == set(model.state_dict())) != untouched


def test_a_base_from_a_config_is_saved_whole() -> None:
    """Nobody can load it again, so the checkpoint has to hold it."""
    model = reward_model(None, 0, {"r": 4})
    assert model.checkpoint_names() == set(model.state_dict())
    train(model)
    trained = model.score(pack(random_groups()))
    again = reward_model(None, 3, {"r": 4}).eval()
    load_strictly(again, checkpoint_of(model), again.checkpoint_names(), "the checkpoint")
    torch.testing.assert_close(again.score(pack(random_groups())), trained, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("named", [["embed_tokens"], "embed_tokens", ["embed_tokens", "score"]])
def test_other_modules_can_be_trained_in_full(named: list[str] | str, base: Path) -> None:
    model = reward_model(base, 0, {"target_modules": ["q_proj"], "modules_to_save": named})
    in_full = {name.rsplit(".modules_to_save", 1)[0] for name in model.checkpoint_names() if "modules_to_save" in name}
    prefix = "backbone.base_model.model"
    assert in_full == {f"{prefix}.model.embed_tokens", f"{prefix}.score"}


def test_only_adapters_and_head_are_trained(base: Path) -> None:
    trained = {name for name, p in reward_model(base, 0, {"r": 4}).named_parameters() if p.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in trained)
    # Two layers of seven linear maps with two matrices each, and the head.
    assert len(trained) == 2 * 7 * 2 + 1


def test_the_head_is_no_adapter(base: Path) -> None:
    assert not any("score" in n and "lora" in n for n, _ in reward_model(base, 0, {}).named_parameters())


def test_adapters_on_a_bfloat16_base_and_their_head_are_float32(base: Path) -> None:
    backbone = backbone_from_pretrained(str(base), dtype="bfloat16", head_init="normal")
    model = RewardModel(backbone, loss=RankingLoss(), lora={"r": 4})
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    train(model, steps=1)
    assert model.score(pack(random_groups())).dtype is torch.float32


def test_rows_of_new_tokens_come_back(base: Path) -> None:
    """The row of a reward token is frozen under adapters; it is made from the base again, to the same value."""
    tokenizer = prepare_tokenizer(byte_tokenizer(), pad_token="[PAD]", ending="<|reward|>")
    rows = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        backbone = backbone_from_pretrained(str(base))
        backbone.resize_token_embeddings(260)
        model = RewardModel(backbone, tokenizer=tokenizer, lora={"r": 4})
        rows.append(model.hf_model.get_input_embeddings().weight[260:].clone())
        assert not any("embed" in name for name in model.checkpoint_names())
    assert rows[0].shape == (2, 32)
    assert torch.equal(rows[0], rows[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, "unexpected keyword argument 'rank'"),
        ({"r": -1}, "`r` should be a positive integer"),
        ({"r": "four"}, "does not fit LlamaForSequenceClassification"),
        ({"target_modules": ["no_such_layer"]}, "No modules were targeted|not found in the base model"),
        ({"init_lora_weights": "magic"}, "does not fit LlamaForSequenceClassification"),
    ],
)
def test_options_that_do_not_fit_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        RewardModel(tiny_backbone(), lora=options)
    assert str(caught.value).startswith(f"lora={options} does not fit LlamaForSequenceClassification")
    assert "\n" not in str(caught.value)


def test_the_options_of_a_recipe_are_left_alone() -> None:
    options = {"type": "LoraConfig", "modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]}
    RewardModel(tiny_backbone(), lora=options)
    assert options == {"type": "LoraConfig", "modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]}
