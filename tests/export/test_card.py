"""The card of an export: what it tells, that its code gives its score, and what it keeps to itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard as HubCard
from mmengine.config import Config
from tiny_models import CHATML, byte_tokenizer, random_groups, tiny_backbone, tiny_causal_lm

from xrlhf.data.packing import pack
from xrlhf.engine.checkpoint import save_checkpoint
from xrlhf.export import export_checkpoint, save_policy, save_reward_model
from xrlhf.export.adapter import save_adapter
from xrlhf.export.card import ModelCard, example_of
from xrlhf.export.training_facts import public_name, training_facts
from xrlhf.models.loading import backbone_from_pretrained
from xrlhf.models.policy_model import PolicyModel
from xrlhf.models.reward_model import RewardModel

SCORE = re.compile(r"had the score \*\*(-?\d+\.\d{4})\*\*")
REPORT = {
    "train": {
        "own": {
            "num_rows": 1200,
            "num_groups": 1190,
            "num_duplicates": 7,
            "left_out": {"too-long": 10, "tie": 2},
            "examples": [],
            "num_groups_used": 1190,
            "num_tokens": 123456,
        }
    },
    "val": {},
}


def card_in(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def python_in(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    return code


def run_code_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The card's own example, run beside the directory as somebody who downloaded it would."""
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {}
    exec(python_in(card_in(folder)), names)
    return names


@pytest.fixture
def finished_run(tiny_recipe: Callable[..., Path], tmp_path: Path) -> tuple[Config, Path]:
    """A recipe of a model with adapters and random scores, its checkpoint, and the other files of its run."""
    from xrlhf.config import load_recipe
    from xrlhf.engine.build import build_model, build_tokenizer

    recipe = load_recipe(tiny_recipe())
    model = build_model(recipe, build_tokenizer(recipe))
    assert isinstance(model, RewardModel)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-1)
    for step in range(3):
        model(pack(random_groups(vocab_size=16, seed=step))).loss.backward()
        optimizer.step()
    run = tmp_path / "somebody" / "run"
    state = {name: value for name, value in model.state_dict().items() if name in model.checkpoint_names()}
    save_checkpoint({"state_dict": state, "meta": {"format": 1}}, run / "iter_20.pth")
    (run / "data_report.json").write_text(json.dumps(REPORT), encoding="utf-8")
    scalars = run / "20260101_000000" / "vis_data" / "scalars.json"
    scalars.parent.mkdir(parents=True)
    lines = [
        {"val/accuracy": 0.5, "step": 10},
        {"loss": 0.25, "step": 20},
        {"val/accuracy": 0.7512, "val/accuracy_low": 0.7, "val/accuracy_high": 0.8, "val/num_groups": 400, "step": 20},
    ]
    scalars.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"val/acc', encoding="utf-8")
    return recipe, run / "iter_20.pth"


def test_the_card_tells_what_the_run_was(finished_run: tuple[Config, Path], tmp_path: Path) -> None:
    recipe, checkpoint = finished_run
    recipe.lr = 2.5e-4
    recipe.hub_token = "hf_verysecretvalue"
    export_checkpoint(recipe, checkpoint, tmp_path / "reward_hf")
    card = card_in(tmp_path / "reward_hf")
    assert "# reward_hf\n" in card
    assert "Its objective was `RankingLoss(" in card
    assert "over 20 optimizer steps" in card
    assert (
        "| own | train | 1,200 | 1,190 | 123,456 | 10: longer than the token limit; 2: the answers are rated alike |"
        in card
    )
    assert "| accuracy | 0.7512 |" in card
    assert "`accuracy_low` and `accuracy_high` are the ends of its 95 % interval" in card
    assert "| lr | 0.00025 |" in card
    assert "| 0.5 |" not in card, "what an earlier validation found is not this checkpoint's"
    assert 'function_to_apply="none"' in card


def test_no_secret_and_no_path_of_the_machine_is_told(finished_run: tuple[Config, Path], tmp_path: Path) -> None:
    recipe, checkpoint = finished_run
    recipe.hub_token = "hf_verysecretvalue"
    recipe.data_path = "/home/somebody/answers/pairs.jsonl"
    recipe.mirror = {"path": "~/somebody/pairs"}
    export_checkpoint(recipe, checkpoint, tmp_path / "reward_hf")
    card = card_in(tmp_path / "reward_hf")
    assert "verysecret" not in card
    assert "somebody" not in card
    assert str(tmp_path) not in card
    assert "| data_path | pairs.jsonl |" in card


def test_the_code_of_a_reward_model_gives_the_score_it_names(
    finished_run: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, checkpoint = finished_run
    export_checkpoint(recipe, checkpoint, tmp_path / "reward_hf")
    found = run_code_of(tmp_path / "reward_hf", monkeypatch)["score"]
    (named,) = SCORE.findall(card_in(tmp_path / "reward_hf"))
    assert float(named) == pytest.approx(found, abs=1e-4)
    assert abs(found) > 1e-3


def test_the_code_of_an_adapter_gives_the_score_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer(CHATML)
    tiny_backbone().save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = RewardModel(backbone_from_pretrained(str(tmp_path / "base")), tokenizer=tokenizer, lora={"r": 4})
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(model, tokenizer, tmp_path / "adapter", card=ModelCard("reward", example=example_of(model, tokenizer)))
    card = card_in(tmp_path / "adapter")
    assert "library_name: peft" in card
    found = run_code_of(tmp_path / "adapter", monkeypatch)["score"]
    assert float(SCORE.findall(card)[0]) == pytest.approx(found, abs=1e-4)


def test_a_model_of_plain_text_is_shown_with_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = RewardModel(tiny_backbone())
    torch.nn.init.normal_(model.hf_model.score.weight)
    save_reward_model(model, byte_tokenizer(None), tmp_path / "plain")
    card = card_in(tmp_path / "plain")
    assert "apply_chat_template(" not in python_in(card)
    found = run_code_of(tmp_path / "plain", monkeypatch)["score"]
    assert float(SCORE.findall(card)[0]) == pytest.approx(found, abs=1e-4)


def test_the_code_of_a_policy_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_policy(PolicyModel(tiny_causal_lm()), byte_tokenizer(CHATML), tmp_path / "policy")
    assert "pipeline_tag: text-generation" in card_in(tmp_path / "policy")
    found = run_code_of(tmp_path / "policy", monkeypatch)
    assert found["answer"].shape[1] > found["inputs"]["input_ids"].shape[1]


def test_hubs_read_its_header(tmp_path: Path) -> None:
    save_reward_model(RewardModel(tiny_backbone()), byte_tokenizer(CHATML), tmp_path / "model")
    data = HubCard.load(tmp_path / "model" / "README.md").data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-classification"
    assert data.tags == ["xrlhf", "reward-model"]
    assert data.base_model is None


@pytest.mark.parametrize(
    ("path", "name"),
    [("owner/name", "owner/name"), ("/home/somebody/models/mine", "mine"), ("work_dirs/a/b", "b"), ("mine", "mine")],
)
def test_public_names(path: str, name: str) -> None:
    assert public_name(path) == name


def test_a_run_that_left_no_files_has_facts_of_its_recipe(finished_run: tuple[Config, Path], tmp_path: Path) -> None:
    recipe, _ = finished_run
    facts = training_facts(recipe, tmp_path / "elsewhere" / "weights.pth")
    assert (facts.step, facts.data, facts.results) == (None, (), {})
    assert facts.objective is not None
