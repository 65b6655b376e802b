from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from safetensors import SafetensorError, safe_open
from tiny_models import CHATML, CONVERSATION, byte_tokenizer, random_groups, scores_alone, tiny_backbone
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)

from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.packing import pack
from xrlhf.engine.checkpoint import load_checkpoint
from xrlhf.errors import CheckpointError, ModelError, UserError
from xrlhf.evaluation.scorer import Scorer
from xrlhf.export import export_checkpoint, save_reward_model
from xrlhf.losses import RankingLoss
from xrlhf.models.heads import AttributeHead
from xrlhf.models.loading import backbone_from_pretrained
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer
from xrlhf.structures import Group, TokenizedGroup

CONVERSATIONS = [
    CONVERSATION,
    [*CONVERSATION[:1], {"role": "assistant", "content": "No idea."}],
    [{"role": "system", "content": "Be brief."}, *CONVERSATION],
]


def trained(family: str = "llama", tokenizer: PreTrainedTokenizerFast | None = None, **options: Any) -> RewardModel:
    """A reward model after two steps."""
    model = RewardModel(tiny_backbone(family), tokenizer=tokenizer, loss=RankingLoss(), **options).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        model(pack(random_groups(seed=step))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def tokenizer_with_reward() -> PreTrainedTokenizerFast:
    template = "{{ bos_token }}" + CHATML
    return prepare_tokenizer(byte_tokenizer(template, adds="<s> $A", bos_token="<s>"), ending="<|reward|>")  # type: ignore[return-value]


def training_scores(model: RewardModel, tokenizer: PreTrainedTokenizerFast) -> list[float]:
    """Scores of CONVERSATIONS on the data path of training."""
    groups = [Group(conversation[:-1], (conversation[-1:],)) for conversation in CONVERSATIONS]
    encoded = GroupEncoder(tokenizer, max_length=512).encode(groups)
    batch = pack([item for item in encoded if isinstance(item, TokenizedGroup)])
    with torch.no_grad():
        return model.score(batch)[:, 0].tolist()


def loaded_scores(folder: Path) -> Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    groups = random_groups()
    with torch.no_grad():
        return scores_alone(model, groups, pack(groups))


# --------------------------------------------------------------------------------------------- same scores


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "qwen3", "mixtral"])
def test_the_directory_scores_as_the_training_model(family: str, tmp_path: Path) -> None:
    model = trained(family)
    scores = model.score(pack(random_groups())).detach()
    save_reward_model(model, byte_tokenizer(), tmp_path / "out")
    torch.testing.assert_close(loaded_scores(tmp_path / "out"), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 4},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "trainable_token_indices": [7, 8]},
        {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    ],
    ids=["all linear", "embedding", "dora", "tokens", "pissa"],
)
def test_adapters_are_merged(lora: dict[str, Any], tmp_path: Path) -> None:
    model = trained(lora=lora)
    scores = model.score(pack(random_groups())).detach()
    save_reward_model(model, byte_tokenizer(), tmp_path / "out")
    torch.testing.assert_close(loaded_scores(tmp_path / "out"), scores, rtol=1e-5, atol=1e-5)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert not any("lora" in name or "modules_to_save" in name for name in file.keys())  # noqa: SIM118


def test_pipelines_score_rendered_text_as_training_did(tmp_path: Path) -> None:
    """Raw by default and on request; sigmoid only for who asks; in batches too, where padding comes in."""
    tokenizer = tokenizer_with_reward()
    model = trained(tokenizer=tokenizer)
    expected = training_scores(model, tokenizer)
    save_reward_model(model, tokenizer, tmp_path / "out")

    classify = pipeline("text-classification", str(tmp_path / "out"), device="cpu", dtype=torch.float32)
    texts = [classify.tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in CONVERSATIONS]
    assert len({len(text) for text in texts}) == 3
    for options in ({}, {"function_to_apply": "none"}, {"batch_size": 3}):
        assert [item["score"] for item in classify(texts, **options)] == pytest.approx(expected, abs=1e-5)
    squashed = classify(texts, function_to_apply="sigmoid")
    assert [item["score"] for item in squashed] == pytest.approx(torch.tensor(expected).sigmoid().tolist(), abs=1e-5)


def test_the_scorer_scores_messages_as_training_did(tmp_path: Path) -> None:
    tokenizer = tokenizer_with_reward()
    model = trained(tokenizer=tokenizer)
    expected = training_scores(model, tokenizer)
    save_reward_model(model, tokenizer, tmp_path / "out")
    groups = [Group(conversation[:-1], (conversation[-1:],)) for conversation in CONVERSATIONS]
    scored = Scorer.from_pretrained(str(tmp_path / "out")).score(groups)
    assert [row[0] for row in scored if isinstance(row, list)] == pytest.approx(expected, abs=1e-5)


def test_the_model_can_be_trained_on(tmp_path: Path) -> None:
    """Writing it out changes neither weights, adapters, types nor attention."""
    for options in ({}, {"lora": {"r": 4}}):
        model = trained(**options).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        scores = model.score(pack(random_groups()))
        save_reward_model(model, byte_tokenizer(), tmp_path / f"out{len(options)}", dtype="bfloat16")
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[n], after[n]) and before[n].dtype == after[n].dtype for n in before)
        assert torch.equal(model.score(pack(random_groups())), scores)
        model(pack(random_groups())).loss.backward()


# --------------------------------------------------------------------------------------- what is written


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    tokenizer = tokenizer_with_reward()
    save_reward_model(trained(tokenizer=tokenizer), tokenizer, out)
    return out


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_files(exported: Path) -> None:
    assert sorted(file.name for file in exported.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [file.name for file in exported.parent.iterdir()] == ["out"]


def test_the_config(exported: Path) -> None:
    config = read(exported / "config.json")
    expected = {
        "architectures": ["LlamaForSequenceClassification"],
        "problem_type": "regression",
        "pad_token_id": 0,
        "bos_token_id": 3,
        "eos_token_id": 2,
        "dtype": "float32",
        "torch_dtype": "float32",
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "id2label": {"0": "LABEL_0"},
    }
    assert {name: config[name] for name in expected} == expected
    assert "xrlhf" not in json.dumps(config)
    loaded = AutoModelForSequenceClassification.from_pretrained(exported)
    assert loaded.config.num_labels == 1
    assert loaded.config._attn_implementation == "sdpa"


def test_the_tokenizer_config(exported: Path) -> None:
    config = read(exported / "tokenizer_config.json")
    assert config["chat_template"].endswith("{{ '<|reward|>' }}{%- endif -%}")
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert config["padding_side"] == "right"
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (config["add_bos_token"], config["add_eos_token"]) == (False, False)
    # transformers 4 cannot read the list under its new name.
    assert "extra_special_tokens" not in config
    assert config["additional_special_tokens"] == ["<|reward|>"]


def test_the_tokenizer_reads_as_in_training(exported: Path) -> None:
    tokenizer, again = tokenizer_with_reward(), AutoTokenizer.from_pretrained(exported)
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    assert again.apply_chat_template(CONVERSATION, tokenize=False) == text
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert set(again(text)) == {"input_ids", "attention_mask"}
    assert again.all_special_ids == tokenizer.all_special_ids


def test_a_tokenizer_without_a_template_keeps_its_bos(tmp_path: Path) -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(None, adds="<s> $A", bos_token="<s>"))
    save_reward_model(trained(), tokenizer, tmp_path / "out")
    assert read(tmp_path / "out" / "tokenizer_config.json")["add_bos_token"] is True
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a")["input_ids"][0] == 3


ROPE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "base": ("llama", {"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
    "scaled": (
        "llama",
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    "partial": ("phi3", {"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 0.5, "rope_theta": 10000.0}),
    "neox": (
        "gpt_neox",
        {"rotary_pct": 0.5, "rotary_emb_base": 20000},
        {"rotary_pct": 0.5, "rotary_emb_base": 20000, "rope_theta": 20000},
    ),
    "none": ("gpt2", {}, {}),
}


@pytest.mark.parametrize("name", ROPE)
def test_rotary_settings_stand_under_their_older_names_too(name: str, tmp_path: Path) -> None:
    """And the older names beside the new ones do not disturb who reads the new ones."""
    family, given, older = ROPE[name]
    model = RewardModel(tiny_backbone(family, **given)).eval()
    scores = model.score(pack(random_groups())).detach()
    save_reward_model(model, byte_tokenizer(), tmp_path / "out")
    config = read(tmp_path / "out" / "config.json")
    assert {key: config[key] for key in older} == older
    assert older or "rope_theta" not in config
    torch.testing.assert_close(loaded_scores(tmp_path / "out"), scores, rtol=1e-5, atol=1e-5)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    wanted = getattr(model.hf_model.config, "rope_parameters", None)
    assert getattr(loaded.config, "rope_parameters", None) == wanted


def test_gemma_3_has_two_rotary_bases(tmp_path: Path) -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2000.0},
    }
    model = RewardModel(tiny_backbone("gemma3_text", rope_parameters=rope)).eval()
    scores = model.score(pack(random_groups())).detach()
    save_reward_model(model, byte_tokenizer(), tmp_path / "out")
    config = read(tmp_path / "out" / "config.json")
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (5e5, 2000.0)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    torch.testing.assert_close(loaded_scores(tmp_path / "out"), scores, rtol=1e-5, atol=1e-5)


def test_shards(tmp_path: Path) -> None:
    model = trained()
    scores = model.score(pack(random_groups())).detach()
    save_reward_model(model, byte_tokenizer(), tmp_path / "out", max_shard_size="50KB")
    index = read(tmp_path / "out" / "model.safetensors.index.json")
    assert len(set(index["weight_map"].values())) > 1
    assert all(file.stat().st_size < 60_000 for file in (tmp_path / "out").glob("model-*.safetensors"))
    torch.testing.assert_close(loaded_scores(tmp_path / "out"), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, tmp_path: Path) -> None:
    """Every weight, the head's too, and near the scores of training: 8 bits of mantissa are two digits."""
    model = trained()
    scores = model.score(pack(random_groups())).detach()
    save_reward_model(model, byte_tokenizer(), tmp_path / "out", dtype=dtype)
    config = read(tmp_path / "out" / "config.json")
    assert (config["dtype"], config["torch_dtype"]) == (dtype, dtype)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {getattr(torch, dtype)}  # noqa: SIM118
    torch.testing.assert_close(loaded_scores(tmp_path / "out"), scores, rtol=0.05, atol=0.1)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded(torch.tensor([[5, 6, 7]])).logits.dtype is getattr(torch, dtype)


# ------------------------------------------------------------------------------------------------ refusals


def test_a_pad_token_of_its_own_is_asked_for(tmp_path: Path) -> None:
    for tokenizer in (byte_tokenizer(pad_token=None), byte_tokenizer(pad_token="<|im_end|>")):
        with pytest.raises(ModelError, match="the tokenizer needs a pad token that is not its end token"):
            save_reward_model(RewardModel(tiny_backbone()), tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="exists and is not empty"):
        save_reward_model(RewardModel(tiny_backbone()), byte_tokenizer(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("target", "error", "raised"),
    [
        (PreTrainedModel, OSError(28, "No space left on device"), UserError),
        (PreTrainedModel, SafetensorError("Error while serializing: No space left on device"), UserError),
        (PreTrainedModel, RuntimeError("half-way"), RuntimeError),
        (PreTrainedTokenizerFast, OSError(28, "No space left on device"), UserError),
        (PreTrainedTokenizerFast, KeyboardInterrupt("half-way"), KeyboardInterrupt),
    ],
)
def test_nothing_is_left_when_saving_fails_half_way(
    target: type, error: BaseException, raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = target.save_pretrained

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        raise error

    monkeypatch.setattr(target, "save_pretrained", fail)
    with pytest.raises(raised, match=r"No space left|half-way") as caught:
        save_reward_model(RewardModel(tiny_backbone()), byte_tokenizer(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    if raised is UserError:
        assert "out could not be written" in str(caught.value)


def test_a_tokenizer_that_autotokenizer_reads_otherwise_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "odd": 2, "text": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    with caplog.at_level(logging.WARNING, logger="xrlhf"):
        save_reward_model(RewardModel(tiny_backbone()), tokenizer, tmp_path / "llama")
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING, logger="xrlhf"):
        save_reward_model(RewardModel(tiny_backbone("qwen2")), tokenizer, tmp_path / "qwen2")
    if AutoTokenizer.from_pretrained(tmp_path / "qwen2")("odd text")["input_ids"] == [2, 3]:
        pytest.skip("this version of transformers reads the tokenizer as it was written")
    assert "would give other ids than training" in caplog.text
    assert "qwen2" in caplog.text
    assert Scorer.from_pretrained(str(tmp_path / "qwen2")).encoder.tokenizer("odd text")["input_ids"] == [2, 3]


# --------------------------------------------------------------------------------------- from a checkpoint


@pytest.fixture
def finished_run(tiny_recipe: Callable[..., Path], tmp_path: Path) -> tuple[Config, Path]:
    """A recipe with adapters on a base from its config, and a checkpoint of it after two steps."""
    from xrlhf.config import load_recipe
    from xrlhf.engine.build import build_model, build_tokenizer
    from xrlhf.engine.checkpoint import save_checkpoint

    recipe = load_recipe(tiny_recipe())
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    assert isinstance(model, RewardModel)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        model(pack(random_groups(vocab_size=16, seed=step))).loss.backward()
        optimizer.step()
    checkpoint = tmp_path / "iter_2.pth"
    state = {name: value for name, value in model.state_dict().items() if name in model.checkpoint_names()}
    save_checkpoint({"state_dict": state, "meta": {"format": 1}}, checkpoint)
    torch.save(model.eval().score(pack(random_groups(vocab_size=16))).detach(), tmp_path / "scores.pt")
    return recipe, checkpoint


def test_a_checkpoint_becomes_a_directory(finished_run: tuple[Config, Path], tmp_path: Path) -> None:
    recipe, checkpoint = finished_run
    export_checkpoint(recipe, checkpoint, tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    groups = random_groups(vocab_size=16)
    with torch.no_grad():
        scores = scores_alone(model, groups, pack(groups))
    torch.testing.assert_close(scores, torch.load(tmp_path / "scores.pt"), rtol=1e-5, atol=1e-5)


def test_the_place_is_looked_at_before_the_checkpoint_is_read(
    finished_run: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, checkpoint = finished_run
    monkeypatch.setattr("xrlhf.export.reward.load_checkpoint", lambda path: pytest.fail("the checkpoint was read"))
    with pytest.raises(UserError, match="exists and is not empty"):
        export_checkpoint(recipe, checkpoint, tmp_path)
    with pytest.raises(ModelError, match="dtype must be"):
        export_checkpoint(recipe, checkpoint, tmp_path / "out", dtype="fp8")


def test_a_checkpoint_of_another_model_is_refused(finished_run: tuple[Config, Path], tmp_path: Path) -> None:
    recipe, checkpoint = finished_run
    recipe.model.backbone.hidden_size = 8
    with pytest.raises(CheckpointError, match="is of another model than the recipe"):
        export_checkpoint(recipe, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_is_refused(finished_run: tuple[Config, Path], tmp_path: Path) -> None:
    recipe, _ = finished_run
    assert load_checkpoint(tmp_path / "iter_2.pth")["meta"] == {"format": 1}
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*iter_9\.pth"):
        export_checkpoint(recipe, tmp_path / "iter_9.pth", tmp_path / "out")


# ---------------------------------------------------------------------------------------------- attributes


def with_attributes(**options: Any) -> RewardModel:
    head = AttributeHead({"help": 0.5, "truth": 2.0, "length": -1.0})
    return RewardModel(tiny_backbone(num_outputs=3), head=head, **options).eval()


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_attributes_are_folded_into_one_score(lora: dict[str, Any] | None, tmp_path: Path) -> None:
    """Every loader of the field then reads the score; the model itself keeps its attributes."""
    model = with_attributes(lora=lora)
    batch = pack(random_groups())
    with torch.no_grad():
        scores, outputs = model.score(batch), model.outputs(batch)
    save_reward_model(model, byte_tokenizer(), tmp_path / "out")
    torch.testing.assert_close(loaded_scores(tmp_path / "out"), scores, rtol=1e-5, atol=1e-5)
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "attribute_weights" not in values
    assert len(values.get("id2label", [0])) == 1
    assert values["problem_type"] == "regression"
    with torch.no_grad():
        assert torch.equal(model.outputs(batch), outputs)


def test_attributes_can_be_kept(tmp_path: Path) -> None:
    """Others read three labels by name, and this project the same score as before."""
    tokenizer, model = byte_tokenizer(), with_attributes()
    expected = training_scores(model, tokenizer)
    save_reward_model(model, tokenizer, tmp_path / "out", keep_attributes=True)
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["id2label"] == {"0": "help", "1": "truth", "2": "length"}
    assert values["attribute_weights"] == [0.5, 2.0, -1.0]
    assert values["problem_type"] == "regression"
    groups = [Group(conversation[:-1], (conversation[-1:],)) for conversation in CONVERSATIONS]
    scored = Scorer.from_pretrained(str(tmp_path / "out")).score(groups)
    assert [scores[0] for scores in scored if isinstance(scores, list)] == pytest.approx(expected, abs=1e-5)
    classify = pipeline("text-classification", str(tmp_path / "out"), device="cpu", dtype=torch.float32)
    text = classify.tokenizer.apply_chat_template(CONVERSATIONS[0], tokenize=False)
    by_name = {item["label"]: item["score"] for item in classify(text, top_k=None)}
    weighted = 0.5 * by_name["help"] + 2.0 * by_name["truth"] - by_name["length"]
    assert weighted == pytest.approx(expected[0], abs=1e-5)


def test_kept_attributes_go_on_as_attributes_and_fold_later(tmp_path: Path) -> None:
    tokenizer, model = byte_tokenizer(), with_attributes()
    expected = training_scores(model, tokenizer)
    save_reward_model(model, tokenizer, tmp_path / "kept", keep_attributes=True)
    again = RewardModel(backbone_from_pretrained(str(tmp_path / "kept"))).eval()
    assert again.head.names == ("help", "truth", "length")
    save_reward_model(again, tokenizer, tmp_path / "folded")
    folded = RewardModel(backbone_from_pretrained(str(tmp_path / "folded"), require_head=True)).eval()
    assert folded.head.names == ()
    assert training_scores(folded, tokenizer) == pytest.approx(expected, abs=1e-5)


def test_a_plain_score_has_no_attributes_to_keep(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the model gives one score and has no attributes to keep"):
        save_reward_model(trained(), byte_tokenizer(), tmp_path / "out", keep_attributes=True)
    assert not (tmp_path / "out").exists()
