from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TaskType
from tiny_models import LORA_OPTIONS, byte_tokenizer, random_groups, tiny_backbone
from torch import Tensor, nn

from xrlhf.data.packing import pack
from xrlhf.engine.checkpoint import load_strictly
from xrlhf.errors import ModelError
from xrlhf.losses import RankingLoss
from xrlhf.models.loading import backbone_from_pretrained
from xrlhf.models.lora import add_lora, base_is_untouched
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer
from xrlhf.structures import TokenizedGroup, as_ids

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


@pytest.mark.parametrize("name", LORA_OPTIONS)
def test_the_head_is_trained_and_saved(name: str, base: Path) -> None:
    """The first step moves the head; after three, a checkpoint under another seed gives the trained scores."""
    model = reward_model(base, 1, LORA_OPTIONS[name])
    head = model.hf_model.score
    before = {key: value.clone() for key, value in model.state_dict().items()}
    untrained = model.eval().score(pack(random_groups()))
    train(model, steps=1)
    assert head.weight.requires_grad
    assert not torch.equal(head.weight, before["backbone.base_model.model.score.modules_to_save.default.weight"])
    train(model, steps=2)
    trained = model.score(pack(random_groups()))
    assert not torch.allclose(trained, untrained, atol=1e-2)

    state = checkpoint_of(model)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.endswith("score.modules_to_save.default.weight") for key in changed)
    # Whatever training changed is in the checkpoint.
    assert changed <= set(state)

    again = reward_model(base, 2, LORA_OPTIONS[name]).eval()
    assert not torch.allclose(again.score(pack(random_groups())), trained, atol=1e-3)
    load_strictly(again, state, again.checkpoint_names(), "the checkpoint")
    torch.testing.assert_close(again.score(pack(random_groups())), trained, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LORA_OPTIONS)
def test_what_a_checkpoint_holds(name: str, base: Path) -> None:
    """Adapters and the trained copy of the head; the base as well where the adapters took something out of it."""
    model = reward_model(base, 0, LORA_OPTIONS[name])
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


def ending_in(token_id: int, groups: list[TokenizedGroup]) -> list[TokenizedGroup]:
    return [
        TokenizedGroup(group.prompt_ids, tuple(as_ids([*response, token_id]) for response in group.response_ids))
        for group in groups
    ]


def with_new_tokens(base: Path, seed: int, lora: dict[str, Any], *, ending: str | None = "<|reward|>") -> RewardModel:
    """On a base of 260 rows, for whose tokenizer a pad token (260) and a reward token (261) are new."""
    torch.manual_seed(seed)
    backbone = backbone_from_pretrained(str(base), head_init="normal")
    backbone.resize_token_embeddings(260)
    tokenizer = prepare_tokenizer(byte_tokenizer(), pad_token="[PAD]", ending=ending)
    return RewardModel(backbone, tokenizer=tokenizer, loss=RankingLoss(), lora=lora)


@pytest.mark.parametrize("name", [name for name in LORA_OPTIONS if name not in MOVES_BASE])
def test_rows_of_new_tokens_are_trained_and_saved(name: str, base: Path) -> None:
    """The row of the reward token, which every conversation ends on, and no other row that was not asked for."""
    model = with_new_tokens(base, 1, LORA_OPTIONS[name])
    before = model.hf_model.get_input_embeddings().weight.detach().clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    batch = pack(ending_in(261, random_groups(vocab_size=260)))
    for _ in range(2):
        model.train()(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = model.eval().score(batch)
    if "embed_tokens" not in str(LORA_OPTIONS[name].get("modules_to_save", "")) + str(
        LORA_OPTIONS[name].get("target_modules", "")
    ):
        after = model.hf_model.get_input_embeddings().weight
        moved = set((after != before).any(dim=1).nonzero().flatten().tolist())
        assert {261} <= moved <= {7, 261}

    again = with_new_tokens(base, 2, LORA_OPTIONS[name]).eval()
    load_strictly(again, checkpoint_of(model), again.checkpoint_names(), "the checkpoint")
    torch.testing.assert_close(again.score(batch), trained, rtol=1e-6, atol=1e-6)


def test_a_new_pad_token_alone_is_not_trained(base: Path) -> None:
    """Nothing reads its row, and training rows costs a copy of the embeddings in every forward pass."""
    model = with_new_tokens(base, 0, {"r": 4}, ending=None)
    assert len(model.hf_model.get_input_embeddings().weight) == 261
    assert not any("embed" in name for name in model.checkpoint_names())


def test_rows_of_new_tokens_on_a_bfloat16_base_are_trained_in_float32(base: Path) -> None:
    backbone = backbone_from_pretrained(str(base), dtype="bfloat16", head_init="normal")
    backbone.resize_token_embeddings(260)
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="<|reward|>")
    model = RewardModel(backbone, tokenizer=tokenizer, loss=RankingLoss(), lora={"r": 4}, precision="bfloat16")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model(pack(ending_in(260, random_groups(vocab_size=260)))).loss.backward()
    rows = [p.grad for name, p in model.named_parameters() if "trainable_tokens_delta" in name]
    assert [row is not None and bool(row.any()) for row in rows] == [True]


def test_embeddings_that_are_no_table_are_named(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Odd(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight)

        def forward(self, ids: Tensor) -> Tensor:
            return self.weight[ids]

    backbone = tiny_backbone()
    backbone.set_input_embeddings(Odd(backbone.get_input_embeddings().weight.detach()))
    with caplog.at_level(logging.WARNING, logger="xrlhf"):
        wrapped = add_lora(backbone, ["score"], {"r": 4}, TaskType.SEQ_CLS, [9])
    assert "the rows of 1 new tokens stay as they were made" in caplog.text
    assert not any("token" in name for name, p in wrapped.named_parameters() if p.requires_grad)


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
