"""Exported InternLM2 reward models, read by plain transformers of several versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from environments import python_with
from internlm2_reference import published_names, reference_score
from safetensors.torch import load_file
from tiny_models import CHATML, CONVERSATION, byte_tokenizer, random_groups, tiny_backbone
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.packing import pack
from xrlhf.data.practice import practice_groups, practice_tokenizer
from xrlhf.errors import ModelError
from xrlhf.evaluation.scorer import Scorer
from xrlhf.export import save_reward_model
from xrlhf.losses import RankingLoss
from xrlhf.models.internlm2 import InternLM2ForCausalLM
from xrlhf.models.loading import backbone_from_pretrained
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer
from xrlhf.structures import Group, TokenizedGroup

SCRIPT = Path(__file__).with_name("other_transformers.py")
CONVERSATIONS = [
    CONVERSATION,
    [*CONVERSATION[:1], {"role": "assistant", "content": "No idea."}],
    [{"role": "system", "content": "Be brief."}, *CONVERSATION],
    [*CONVERSATION, {"role": "user", "content": "Sure? " * 8}, {"role": "assistant", "content": "Yes."}],
]
OLD = {
    "4.41.2": ["transformers==4.41.2", "numpy<2"],
    "4.51.3": ["transformers==4.51.3", "numpy<2"],
}
"""Versions of transformers that exports are read by, with what else they need beside this torch."""
SCALINGS = (None, {"type": "linear", "factor": 3.0}, {"type": "dynamic", "factor": 2.0})


def reward_tokenizer() -> PreTrainedTokenizerFast:
    return prepare_tokenizer(byte_tokenizer("{{ bos_token }}" + CHATML, bos_token="<s>"), ending="<|reward|>")  # type: ignore[return-value]


def trained(tokenizer: Any, *, lora: Any = None, **config: Any) -> RewardModel:
    """A reward model after two steps."""
    config = {"vocab_size": len(tokenizer), **config}
    model = RewardModel(
        tiny_backbone("internlm2", **config), tokenizer=tokenizer, loss=RankingLoss(), layout="packed", lora=lora
    ).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        model(pack(random_groups(vocab_size=260, seed=step))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def encoded(tokenizer: Any) -> list[TokenizedGroup]:
    groups = [Group(conversation[:-1], (conversation[-1:],)) for conversation in CONVERSATIONS]
    items = GroupEncoder(tokenizer, max_length=512).encode(groups)
    return [item for item in items if isinstance(item, TokenizedGroup)]


def training_scores(model: RewardModel, tokenizer: Any) -> list[float]:
    """Scores of CONVERSATIONS on the data path of training."""
    with torch.no_grad():
        return model.score(pack(encoded(tokenizer)))[:, 0].tolist()


def reference_scores(folder: Path, tokenizer: Any) -> list[float]:
    """What the reference gives for the exported files, with the ids of the data path."""
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows = [[*group.prompt_ids, *group.response_ids[0]] for group in encoded(tokenizer)]
    return [reference_score(weights, config, row) for row in rows]


def read_by(python: Path | str, folder: Path, tmp_path: Path) -> dict[str, Any]:
    """What ``other_transformers.py`` prints under another interpreter, in a folder without this package."""
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps(CONVERSATIONS), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONSAFEPATH": "1",
    }
    command = [str(python), str(SCRIPT), str(folder), str(file)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_reading(got: dict[str, Any], scores: list[float], num_layers: int = 2) -> None:
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    assert got["class"] == "InternLM2ForRewardModel"
    assert got["imported"] == []
    assert set(got["names"]) == published_names(num_layers)
    assert got["alone"] == pytest.approx(scores, abs=1e-5)
    assert got["together"] == pytest.approx(scores, abs=1e-5)
    assert got["one"] == pytest.approx(scores[:1], abs=1e-5)
    assert got["none"] == []
    assert got["rank"] == got["rank_with_scores"][0] == order
    assert got["rank_of_one"] == [0]
    assert got["rank_with_scores"][1] == pytest.approx(scores, abs=1e-5)
    assert got["compare"] is got["compare_with_scores"][0] is (scores[0] > scores[1])
    assert got["compare_with_scores"][1] == pytest.approx(scores[:2], abs=1e-5)


# --------------------------------------------------------------------------------------------- what is written


def test_the_directory_is_as_published(tmp_path: Path) -> None:
    tokenizer = reward_tokenizer()
    scaling = {"type": "dynamic", "factor": 2.0}
    model = trained(tokenizer, rope_scaling=scaling, rope_theta=1e6)
    save_reward_model(model, tokenizer, tmp_path / "out")
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"configuration_internlm2.py", "modeling_internlm2.py", "model.safetensors", "tokenizer.json"} <= files
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == published_names(2)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    wanted = {
        "model_type": "internlm2",
        "architectures": ["InternLM2ForRewardModel"],
        "auto_map": {
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModel": "modeling_internlm2.InternLM2ForRewardModel",
        },
        "reward_token_id": tokenizer.convert_tokens_to_ids("<|reward|>"),
        "rope_theta": 1e6,
        "rope_scaling": scaling,
        "bias": False,
        "torch_dtype": "float32",
        "pad_token_id": tokenizer.pad_token_id,
    }
    assert {name: config.get(name) for name in wanted} == wanted
    for file in ("configuration_internlm2.py", "modeling_internlm2.py"):
        assert "xrlhf" not in (tmp_path / "out" / file).read_text(encoding="utf-8")


def test_the_token_that_the_template_ends_on_is_the_reward_token(tmp_path: Path) -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer())
    save_reward_model(trained(tokenizer), tokenizer, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    # CHATML ends on a line break.
    assert config["reward_token_id"] == tokenizer("\n")["input_ids"][0]


# ------------------------------------------------------------------------------------------------ same scores


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_training_export_and_reference_agree(scaling: Any, tmp_path: Path) -> None:
    tokenizer = reward_tokenizer()
    model = trained(tokenizer, rope_scaling=scaling)
    scores = training_scores(model, tokenizer)
    save_reward_model(model, tokenizer, tmp_path / "out")
    assert reference_scores(tmp_path / "out", tokenizer) == pytest.approx(scores, abs=1e-5)
    assert max(scores) - min(scores) > 1e-3, "all scores are alike, so the comparison shows nothing"
    got = read_by(sys.executable, tmp_path / "out", tmp_path)
    check_reading(got, scores)
    assert "transformers_modules" in got["module"]
    again = Scorer.from_pretrained(str(tmp_path / "out"))
    groups = [Group(conversation[:-1], (conversation[-1:],)) for conversation in CONVERSATIONS]
    assert [row[0] for row in again.score(groups)] == pytest.approx(scores, abs=1e-5)  # type: ignore[index]


@pytest.mark.parametrize("scaling", SCALINGS[1:], ids=str)
def test_the_exported_code_scales_positions_beyond_the_limit(scaling: Any, tmp_path: Path) -> None:
    """A limit of 64 tokens, which most of the conversations exceed; training would refuse them."""
    tokenizer = reward_tokenizer()
    model = trained(tokenizer, rope_scaling=scaling, max_position_embeddings=64)
    save_reward_model(model, tokenizer, tmp_path / "out")
    scores = reference_scores(tmp_path / "out", tokenizer)
    check_reading(read_by(sys.executable, tmp_path / "out", tmp_path), scores)


def test_adapters_are_merged(tmp_path: Path) -> None:
    tokenizer = reward_tokenizer()
    model = trained(tokenizer, lora={"r": 4})
    scores = training_scores(model, tokenizer)
    save_reward_model(model, tokenizer, tmp_path / "out")
    check_reading(read_by(sys.executable, tmp_path / "out", tmp_path), scores)


def test_the_layout_of_llama(tmp_path: Path) -> None:
    tokenizer = reward_tokenizer()
    for name, config in {"bias": {"bias": True}, "dynamic": {"rope_scaling": SCALINGS[2], "rope_theta": 1e5}}.items():
        model = trained(tokenizer, **config)
        scores = training_scores(model, tokenizer)
        folder = tmp_path / name
        save_reward_model(model, tokenizer, folder, architecture="LlamaForSequenceClassification")
        assert not list(folder.glob("*.py"))
        llama = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        assert type(llama).__name__ == "LlamaForSequenceClassification"
        ids = [torch.tensor([[*group.prompt_ids, *group.response_ids[0]]]) for group in encoded(tokenizer)]
        got = [float(llama(row.long()).logits[0, 0].detach()) for row in ids]
        assert got == pytest.approx(scores, abs=1e-5)
        assert Scorer.from_pretrained(str(folder)).model.head_name == "score"


@pytest.fixture(scope="session", params=OLD)
def old_python(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """Version and interpreter of an environment with an older transformers; kept in the cache from run to run."""
    version = request.param
    requirements = [f"torch=={torch.__version__.split('+')[0]}", *OLD[version]]
    return version, python_with(f"transformers-{version}", requirements)


@pytest.mark.slow
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_older_transformers_give_the_same_scores(scaling: Any, old_python: tuple[str, Path], tmp_path: Path) -> None:
    """Beyond the limit of 64 tokens where positions are scaled."""
    version, python = old_python
    tokenizer = reward_tokenizer()
    limit = 512 if scaling is None else 64
    save_reward_model(
        trained(tokenizer, rope_scaling=scaling, max_position_embeddings=limit), tokenizer, tmp_path / "out"
    )
    got = read_by(python, tmp_path / "out", tmp_path)
    assert got["version"] == version
    check_reading(got, reference_scores(tmp_path / "out", tokenizer))


@pytest.mark.slow
def test_older_transformers_read_a_tokenizer_with_merges(old_python: tuple[str, Path], tmp_path: Path) -> None:
    _, python = old_python
    tokenizer = prepare_tokenizer(practice_tokenizer(), ending="<|reward|>")
    model = trained(tokenizer)
    save_reward_model(model, tokenizer, tmp_path / "out")
    check_reading(read_by(python, tmp_path / "out", tmp_path), training_scores(model, tokenizer))


# -------------------------------------------------------------------------------------------- the whole way


@pytest.mark.slow
def test_from_a_recipe_to_automodel(
    repo_root: Path, tmp_path: Path, xrlhf: Callable[..., CompletedProcess[str]]
) -> None:
    """The shipped recipe on a tiny InternLM2 in the published layout, three steps."""
    tokenizer = practice_tokenizer()
    torch.manual_seed(0)
    backbone = tiny_backbone("internlm2", vocab_size=len(tokenizer), max_position_embeddings=2048)
    InternLM2ForCausalLM(backbone.config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [
        {
            "source": "practice",
            "prompt": group.prompt[-1]["content"],
            "chosen": [*group.prompt, *group.responses[0]],
            "chosen-rating": 5.0,
            "rejected": [*group.prompt, *group.responses[1]],
            "rejected-rating": 2.0,
        }
        for group in practice_groups(300)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"source": str(tmp_path / "rows.jsonl"), "map_fn": "xrlhf.data.map_fns.ultrafeedback_cleaned_map_fn"}
    recipe = str(repo_root / "configs" / "internlm2_1_8b_reward.py")
    options = [
        "--cfg-options",
        f"pretrained_model_name_or_path={tmp_path / 'base'}",
        f"sources=[{source}]",
        f"work_dir={tmp_path / 'run'}",
        "precision=float32",
        "train_cfg.max_steps=3",
        "train_cfg.max_epochs=None",
    ]
    planned = xrlhf("train", recipe, "--dry-run", *options)
    assert planned.returncode == 0, planned.stderr[-2000:]
    assert "nothing was trained" in planned.stdout
    done = xrlhf("train", recipe, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "out"
    done = xrlhf("convert", "pth_to_hf", recipe, tmp_path / "run" / "iter_3.pth", out, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"AutoModel.from_pretrained({str(out)!r}, trust_remote_code=True)" in done.stdout
    got = read_by(sys.executable, out, tmp_path)
    check_reading(got, reference_scores(out, AutoTokenizer.from_pretrained(out)))
    assert max(got["alone"]) - min(got["alone"]) > 1e-5
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    reward_token = AutoTokenizer.from_pretrained(out).convert_ids_to_tokens(config["reward_token_id"])
    assert reward_token == "[UNUSED_TOKEN_130]"
    done = xrlhf(
        "convert", "pth_to_hf", recipe, tmp_path / "run" / "iter_3.pth", tmp_path / "llama",
        "--architecture", "LlamaForSequenceClassification", *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "AutoModelForSequenceClassification.from_pretrained" in done.stdout


# --------------------------------------------------------------------------------- reading published models


def test_a_published_reward_model_is_read_at_its_reward_token(tmp_path: Path) -> None:
    """Published templates do not write the reward token; their code appends it, and so does the scorer."""
    with_ending = reward_tokenizer()
    model = trained(with_ending)
    scores = training_scores(model, with_ending)
    save_reward_model(model, with_ending, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = "{{ bos_token }}" + CHATML
    (tmp_path / "out" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    check_reading(read_by(sys.executable, tmp_path / "out", tmp_path), scores)
    scorer = Scorer.from_pretrained(str(tmp_path / "out"))
    groups = [Group(conversation[:-1], (conversation[-1:],)) for conversation in CONVERSATIONS]
    assert [row[0] for row in scorer.score(groups)] == pytest.approx(scores, abs=1e-5)  # type: ignore[index]


# ----------------------------------------------------------------------------------------------- bad input


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **values}), encoding="utf-8")


def test_a_reward_token_that_is_none_is_named(tmp_path: Path) -> None:
    tokenizer = reward_tokenizer()
    save_reward_model(trained(tokenizer), tokenizer, tmp_path / "out")
    edit_config(tmp_path / "out", reward_token_id=92527)
    with pytest.raises(ModelError, match=r"config.json has reward_token_id 92527, which is no token of the tokenizer"):
        Scorer.from_pretrained(str(tmp_path / "out"))
    model = backbone_from_pretrained(str(tmp_path / "out"), require_head=True)
    with pytest.raises(ValueError, match=r"reward_token_id 92527, which is none of the model's 261 tokens"):
        model.get_score(tokenizer, CONVERSATION)


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(None))
    with pytest.raises(ModelError, match="reads conversations by a chat template, and the tokenizer has none"):
        save_reward_model(trained(tokenizer), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_architecture_that_it_is_not(tmp_path: Path) -> None:
    tokenizer = reward_tokenizer()
    accepted = "InternLM2ForRewardModel or LlamaForSequenceClassification"
    with pytest.raises(ModelError, match=f"architecture must be {accepted} for this model, got 'Qwen2'"):
        save_reward_model(trained(tokenizer), tokenizer, tmp_path / "out", architecture="Qwen2")
    llama = RewardModel(tiny_backbone("llama"))
    with pytest.raises(ModelError, match="architecture must be LlamaForSequenceClassification for this model"):
        save_reward_model(llama, tokenizer, tmp_path / "out", architecture="InternLM2ForRewardModel")
    assert not (tmp_path / "out").exists()
