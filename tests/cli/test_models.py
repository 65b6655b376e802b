"""Models and tokenizers that cannot be used as asked, through the command line: one line that says what to change."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_models import byte_tokenizer, tiny_backbone

from xrlhf.cli.main import main
from xrlhf.export import save_adapter
from xrlhf.models.loading import backbone_from_pretrained
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer

CHAT = {"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "five"}]}


@pytest.fixture(autouse=True)
def own_logger(package_logger: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands take the package's logger over."""
    monkeypatch.chdir(tmp_path)
    Path("chat.jsonl").write_text(json.dumps(CHAT) + "\n")


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with status 2, and returns its last line on the error stream."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error: ", "failed: "))]
        assert (status, len(lines)) == (2, 1)
        return lines[0]

    return run


def causal_lm(folder: Path, **changes: int) -> Path:
    config = tiny_backbone(**{"vocab_size": 260, **changes}).config.to_dict()
    for name in ("id2label", "label2id"):
        del config[name]
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def reward_model(folder: Path, num_labels: int = 1, vocab_size: int = 260, template: bool = True) -> Path:
    config = tiny_backbone(vocab_size=vocab_size).config.to_dict()
    for name in ("id2label", "label2id"):
        del config[name]
    built = AutoConfig.for_model(**config, num_labels=num_labels)
    AutoModelForSequenceClassification.from_config(built).save_pretrained(folder)
    (byte_tokenizer() if template else byte_tokenizer(None)).save_pretrained(folder)
    return folder


def score(model: Path) -> list[str]:
    return ["score", str(model), "--data", "chat.jsonl", "--out", "scored.jsonl", "--device", "cpu"]


def test_a_language_model_to_score_with(complaint: Callable[..., str], tmp_path: Path) -> None:
    model = causal_lm(tmp_path / "lm")
    assert complaint(*score(model)) == (
        f"error: '{model}' holds no score head: it is a language model, not a reward model; name what 'xrlhf convert' "
        "wrote, or another model with a trained head"
    )
    assert not Path("scored.jsonl").exists()


def test_a_classifier_of_two_labels(complaint: Callable[..., str], tmp_path: Path) -> None:
    model = reward_model(tmp_path / "two", num_labels=2)
    assert complaint(*score(model)).startswith(f"error: '{model}' has a score head that does not give one score: ")


def test_a_tokenizer_larger_than_the_embeddings(complaint: Callable[..., str], tmp_path: Path) -> None:
    model = reward_model(tmp_path / "small", vocab_size=200)
    assert complaint(*score(model)) == (
        "error: the tokenizer has ids up to 259 but the model embeds only 200 tokens: use the tokenizer that belongs "
        "to this model"
    )


def test_no_chat_template(complaint: Callable[..., str], tmp_path: Path) -> None:
    model = reward_model(tmp_path / "bare", template=False)
    assert f"the tokenizer '{model}' has no chat template: give one" in complaint(*score(model))


def make_adapter(base: Path, folder: Path) -> Path:
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="<|reward|>")
    backbone = backbone_from_pretrained(str(base), head_init="normal")
    save_adapter(RewardModel(backbone, tokenizer=tokenizer, lora={"r": 4}), tokenizer, folder)
    return folder


def test_an_adapter_for_another_base(complaint: Callable[..., str], tmp_path: Path) -> None:
    adapter = make_adapter(causal_lm(tmp_path / "base"), tmp_path / "adapter")
    other = causal_lm(tmp_path / "other", hidden_size=64)
    line = complaint("convert", "merge", other, adapter, "out")
    assert line.startswith(f"error: the adapter '{adapter}' is for another base than '{other}' (LlamaForSequence")
    assert "is of shape" in line
    smaller = causal_lm(tmp_path / "smaller", vocab_size=200)
    assert complaint("convert", "merge", smaller, adapter, "out").endswith(
        "it trains the row of token 260, the base embeds 200 tokens, and the adapter brings no row for token 200"
    )
    assert not Path("out").exists()


def test_an_adapter_scores_as_what_it_is_merged_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = causal_lm(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    assert main(score(adapter)) == 0
    first = json.loads(Path("scored.jsonl").read_text())["score"]
    assert main(["convert", "merge", str(base), str(adapter), "out"]) == 0
    assert main(["convert", "split", "out", "small", "--max-shard-size", "50KB"]) == 0
    assert len(list(Path("small").glob("*.safetensors"))) > 1
    for folder in ("out", "small"):
        assert main(score(Path(folder))) == 0
        assert json.loads(Path("scored.jsonl").read_text())["score"] == pytest.approx(first, abs=1e-5)
    assert first != 0


def test_the_way_from_a_recipe_to_an_adapter(tiny_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Trained, exported both ways: the same scores; no pad token in the tokenizer at first."""
    base = causal_lm(tmp_path / "base")
    byte_tokenizer(pad_token=None).save_pretrained(base)
    recipe = tiny_recipe(
        validate=False,
        extra=f"""
from xrlhf.models import backbone_from_pretrained
tokenizer = dict(type=load_tokenizer, path={str(base)!r}, ending="<|reward|>")
model = dict(
    type=RewardModel,
    backbone=dict(type=backbone_from_pretrained, path={str(base)!r}),
    lora=dict(r=4),
    loss=dict(type=RankingLoss),
)
dataset = dict(dataset, max_length=256)
train_dataloader = dict(dataset=dataset, groups_per_step=2, token_budget=1024)
train_cfg = dict(type=GroupTrainLoop, max_steps=4)
default_hooks = dict(checkpoint=dict(interval=2, max_keep=None), logger=dict(interval=1))
""",
    )
    assert main(["train", str(recipe), "--device", "cpu"]) == 0
    checkpoint = tmp_path / "tiny" / "iter_4.pth"
    assert "the tokenizer has no pad token: it pads with <|pad|> from now on" in " ".join(
        file.read_text() for file in (tmp_path / "tiny").glob("*/*.log")
    )
    assert main(["convert", "pth_to_hf", str(recipe), str(checkpoint), "merged"]) == 0
    assert main(["convert", "pth_to_hf", str(recipe), str(checkpoint), "adapter", "--adapter"]) == 0
    scores = []
    for folder in ("merged", "adapter"):
        assert main(score(Path(folder))) == 0
        scores.append(json.loads(Path("scored.jsonl").read_text())["score"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[0] != 0
