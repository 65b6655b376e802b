"""Adapters with their head, by themselves and on their base: every way gives the scores of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import LORA_OPTIONS, byte_tokenizer, random_groups, scores_alone, tiny_backbone
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from xrlhf.data.packing import pack
from xrlhf.errors import ModelError, UserError
from xrlhf.evaluation.scorer import Scorer
from xrlhf.export import merge_into_base, save_adapter, save_reward_model, split_model
from xrlhf.losses import RankingLoss
from xrlhf.models.loading import backbone_from_pretrained
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer, read_tokenizer
from xrlhf.structures import Group, TokenizedGroup, as_ids

REWARD = 260


def make_base(folder: Path, **changes: Any) -> Path:
    """A language model of 260 rows without a head, with its tokenizer."""
    config = {
        k: v for k, v in tiny_backbone(vocab_size=260).config.to_dict().items() if k not in ("id2label", "label2id")
    }
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**config, **changes})).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("adapter") / "base")


def groups() -> list[TokenizedGroup]:
    """Every conversation ends on the reward token."""
    return [
        TokenizedGroup(group.prompt_ids, tuple(as_ids([*response, REWARD]) for response in group.response_ids))
        for group in random_groups(vocab_size=260)
    ]


def trained(base: Path, lora: dict[str, Any] | None, **tokens: str) -> tuple[RewardModel, Any]:
    """Two steps on a base for which the reward token is new."""
    torch.manual_seed(1)
    tokenizer = prepare_tokenizer(byte_tokenizer(), **{"ending": "<|reward|>", **tokens})
    backbone = backbone_from_pretrained(str(base), head_init="normal")
    model = RewardModel(backbone, tokenizer=tokenizer, loss=RankingLoss(), lora=lora).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        model(pack(groups())).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


def training_scores(model: RewardModel) -> Tensor:
    return model.score(pack(groups())).detach()


@torch.no_grad()
def plain_scores(model: nn.Module) -> Tensor:
    """What transformers gives each conversation by itself."""
    return scores_alone(model.eval(), groups(), pack(groups()))  # type: ignore[arg-type]


def same(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------- same scores


@pytest.mark.parametrize("name", [name for name in LORA_OPTIONS if name != "pissa"])
def test_every_way_gives_the_scores_of_training(name: str, base: Path, tmp_path: Path) -> None:
    model, tokenizer = trained(base, LORA_OPTIONS[name])
    wanted = training_scores(model)
    assert wanted.std() > 0.1

    save_reward_model(model, tokenizer, tmp_path / "merged")
    same(plain_scores(AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")), wanted)

    save_adapter(model, tokenizer, tmp_path / "adapter")
    torch.manual_seed(2)
    found = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=1)
    same(plain_scores(found), wanted)

    torch.manual_seed(3)
    onto = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    onto.resize_token_embeddings(len(tokenizer))
    same(plain_scores(PeftModel.from_pretrained(onto, tmp_path / "adapter")), wanted)

    torch.manual_seed(4)
    ours = backbone_from_pretrained(str(tmp_path / "adapter"), require_head=True)
    same(RewardModel(ours).eval().score(pack(groups())).detach(), wanted)

    merge_into_base(str(base), str(tmp_path / "adapter"), tmp_path / "again")
    same(plain_scores(AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")), wanted)
    assert torch.equal(training_scores(model), wanted), "saving changed the model"


def test_a_new_pad_token_comes_along(base: Path, tmp_path: Path) -> None:
    """Its row is trained by nobody, and yet other tools find as many rows as the tokenizer has tokens."""
    model, tokenizer = trained(base, {"r": 4}, pad_token="[PAD]")
    save_adapter(model, tokenizer, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == [260, 261]
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    rows = weights["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    assert torch.equal(rows, model.hf_model.get_input_embeddings().weight[260:])
    reloaded = backbone_from_pretrained(str(tmp_path / "adapter"))
    assert torch.equal(reloaded.get_input_embeddings().weight[260:], rows)
    Scorer.from_pretrained(str(tmp_path / "adapter"))


def test_what_an_adapter_directory_holds(base: Path, tmp_path: Path) -> None:
    model, tokenizer = trained(base, {"r": 4})
    save_adapter(model, tokenizer, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json")
    ]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.resolve())
    assert (config["task_type"], config["modules_to_save"], config["inference_mode"]) == ("SEQ_CLS", ["score"], True)
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert weights["base_model.model.score.weight"].shape == (1, 32)
    assert "embed_tokens.weight" not in "".join(weights)
    save_adapter(model, tokenizer, tmp_path / "half", dtype="bfloat16")
    halves = load_file(tmp_path / "half" / "adapter_model.safetensors")
    assert {value.dtype for value in halves.values()} == {torch.bfloat16}


def test_the_scorer_reads_an_adapter(base: Path, tmp_path: Path) -> None:
    model, tokenizer = trained(base, {"r": 4})
    save_adapter(model, tokenizer, tmp_path / "adapter")
    save_reward_model(model, tokenizer, tmp_path / "merged")
    chats = [Group([{"role": "user", "content": "2 + 3?"}], ([{"role": "assistant", "content": "five"}],))]
    scores = [Scorer.from_pretrained(str(tmp_path / name)).score(chats)[0][0] for name in ("adapter", "merged")]  # type: ignore[index]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert read_tokenizer(str(tmp_path / "adapter")).chat_template.endswith("{{ '<|reward|>' }}{%- endif -%}")


def test_an_adapter_without_a_tokenizer_takes_that_of_its_base(base: Path, tmp_path: Path) -> None:
    model, tokenizer = trained(base, {"r": 4})
    save_adapter(model, tokenizer, tmp_path / "adapter")
    for file in (tmp_path / "adapter").glob("tokenizer*"):
        file.unlink()
    assert len(Scorer.from_pretrained(str(tmp_path / "adapter")).encoder.tokenizer) == 260
    merge_into_base(str(base), str(tmp_path / "adapter"), tmp_path / "out")
    assert len(read_tokenizer(str(tmp_path / "out"))) == 260


def test_training_goes_on_from_an_adapter(base: Path, tmp_path: Path) -> None:
    """Merged into its base it is the base of new adapters, which a checkpoint holds without it."""
    model, tokenizer = trained(base, {"r": 4})
    save_adapter(model, tokenizer, tmp_path / "first")
    second, tokenizer = trained(tmp_path / "first", {"r": 4})
    names = second.checkpoint_names()
    assert names < set(second.state_dict())
    state = {name: value.clone() for name, value in second.state_dict().items() if name in names}
    wanted = training_scores(second)
    again = RewardModel(backbone_from_pretrained(str(tmp_path / "first")), tokenizer=tokenizer, lora={"r": 4}).eval()
    assert again.checkpoint_names() == names
    again.load_state_dict(state, strict=False)
    same(training_scores(again), wanted)
    with pytest.raises(ModelError, match="is an adapter itself, which other tools cannot put this one on: merge it"):
        save_adapter(second, tokenizer, tmp_path / "second")


# ------------------------------------------------------------------------------------------------ refusals


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = trained(base, {"r": 4})
    out = tmp_path_factory.mktemp("adapter") / "adapter"
    save_adapter(model, tokenizer, out)
    return out


def edited(adapter: Path, folder: Path, **changes: Any) -> Path:
    """A copy of an adapter with another config."""
    folder.mkdir()
    for file in adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 48}, r"score\.weight is of shape \(1, 32\), and \(1, 48\)|is of shape .*32.*, and .*48"),
        ({"num_hidden_layers": 1}, r"it has model\.layers\.1\..*, which has no place there"),
        ({"num_hidden_layers": 3}, r"its own, .*base', has num_hidden_layers=2, and this one 3"),
        ({"vocab_size": 300}, "has vocab_size=260, and this one 300"),
        ({"vocab_size": 200}, "trains the row of token 260, the base embeds 200 tokens, and the adapter brings no row"),
    ],
)
def test_an_adapter_for_another_base(change: dict[str, int], message: str, adapter: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "base", **change)
    with pytest.raises(ModelError, match=message) as caught:
        merge_into_base(str(other), str(adapter), tmp_path / "out")
    assert f"the adapter {str(adapter)!r} is for another base than {str(other)!r}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_adapter_for_another_architecture(adapter: Path, tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=260, bos_token_id=1, eos_token_id=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"is for another base than .*GPT2ForSequenceClassification"):
        merge_into_base(str(tmp_path / "gpt2"), str(adapter), tmp_path / "out")


def test_another_name_of_the_base_is_reported(
    base: Path, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_base(tmp_path / "moved")
    merge_into_base(str(other), str(adapter), tmp_path / "out")
    assert f"was trained on {base.resolve()} and is put on {other}" in caplog.text


def test_an_adapter_without_its_head(adapter: Path, tmp_path: Path) -> None:
    folder = edited(adapter, tmp_path / "headless")
    weights = load_file(folder / "adapter_model.safetensors")
    del weights["base_model.model.score.weight"]
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="holds no score head: it is the adapter of a language model, or was saved"):
        Scorer.from_pretrained(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base_model_name_or_path": "/no/such/base"},
            "adapter whose base cannot be loaded: no model at '/no/such",
        ),
        ({"base_model_name_or_path": None}, "names no base model: write it there as base_model_name_or_path"),
        ({"peft_type": "IA3"}, "holds a .*IA3 adapter: only LoRA adapters"),
        ({"peft_type": "magic"}, "cannot be read"),
        ({"init_lora_weights": "pissa"}, "began with init_lora_weights='pissa', which takes a part out of its base"),
    ],
)
def test_adapters_that_cannot_be_read(changes: dict[str, Any], message: str, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        Scorer.from_pretrained(str(edited(adapter, tmp_path / "edited", **changes)))
    assert "\n" not in str(caught.value)


def test_damaged_weights(adapter: Path, tmp_path: Path) -> None:
    folder = edited(adapter, tmp_path / "damaged")
    (folder / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match=r"the weights of the adapter .*damaged' cannot be read"):
        Scorer.from_pretrained(str(folder))


def test_no_adapter_to_merge(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"base' holds no adapter: there is no adapter_config\.json"):
        merge_into_base(str(base), str(base), tmp_path / "out")


def test_models_without_an_adapter_to_export(base: Path, tmp_path: Path) -> None:
    model, tokenizer = trained(base, None)
    with pytest.raises(ModelError, match="trains all weights, so there is no adapter: leave --adapter out"):
        save_adapter(model, tokenizer, tmp_path / "out")
    with pytest.raises(ModelError, match="base was made from a config and exists nowhere else"):
        save_adapter(RewardModel(tiny_backbone(), lora={"r": 4}), byte_tokenizer(), tmp_path / "out")
    model, tokenizer = trained(base, LORA_OPTIONS["pissa"])
    with pytest.raises(ModelError, match="init_lora_weights='pissa' took a part out of the base"):
        save_adapter(model, tokenizer, tmp_path / "out")
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="exists and is not empty"):
        save_adapter(model, tokenizer, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


# ---------------------------------------------------------------------------------------------- other sizes


def test_splitting_changes_nothing_but_the_files(base: Path, tmp_path: Path) -> None:
    split_model(base, tmp_path / "small", max_shard_size="50KB")
    shards = sorted(file.name for file in (tmp_path / "small").glob("*.safetensors"))
    assert len(shards) > 1
    assert all((tmp_path / "small" / name).stat().st_size < 60_000 for name in shards)
    split_model(tmp_path / "small", tmp_path / "whole", max_shard_size="1GB")
    one, other = load_file(base / "model.safetensors"), load_file(tmp_path / "whole" / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {file.name for file in (tmp_path / "whole").iterdir()} == {file.name for file in base.iterdir()}
    loaded = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (base, tmp_path / "small")]
    assert all(torch.equal(loaded[0][name], loaded[1][name]) for name in loaded[0])


@pytest.mark.parametrize(
    ("size", "message"),
    [("big", "must be a number with KB, MB, GB or TB, such as 2GB, got 'big'"), ("0.5", "got '0.5'")],
)
def test_sizes_that_are_none(size: str, message: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        split_model(base, tmp_path / "out", max_shard_size=size)


def test_what_cannot_be_split(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model at .*nowhere': there is no such directory"):
        split_model(tmp_path / "nowhere", tmp_path / "out", max_shard_size="1GB")
    with pytest.raises(ModelError, match="holds no readable safetensors weights"):
        split_model(tmp_path, tmp_path / "elsewhere" / "out", max_shard_size="1GB")
    with pytest.raises(UserError, match="exists and is not empty"):
        split_model(base, base, max_shard_size="1GB")
