"""Files that ``xrlhf generate`` makes are trained on as they are, through the command line alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_backbone
from transformers import LlamaConfig, LlamaForCausalLM

from xrlhf.data.practice import best_answer, practice_prompts, practice_tokenizer

Run = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = """
model = dict(
    type=RewardModel,
    backbone=dict(
        type=backbone_from_config,
        model_type="llama",
        vocab_size={size},
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    ),
    loss=dict(type=RankingLoss),
)
tokenizer = dict(type=load_tokenizer, path={tokenizer!r})
dataset = dict(
    type=GroupDataset, sources=[dict(source={data!r}, map_fn="{map_fn}")], max_length=512, cache_dir={cache!r}
)
train_dataloader = dict(dataset=dataset, groups_per_step=4, token_budget=2048)
train_cfg = dict(type=GroupTrainLoop, max_steps=3)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy and a tiny reward model of the practice tokenizer, and prompts with good answers."""
    folder = tmp_path_factory.mktemp("generate")
    tokenizer = practice_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "policy")
    tiny_backbone(seed=7, vocab_size=len(tokenizer)).save_pretrained(folder / "reward")
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(folder / name)
    rows = [{"prompt": messages, "response": best_answer(messages)} for messages in practice_prompts(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "map_fn"),
    [
        ("rejected", ["--rejected-for"], "pair_map_fn"),
        ("ranked", ["--k", "3", "--rank-by", "reward", "--prompts"], "ranked_map_fn"),
    ],
)
def test_what_is_generated_is_trained_on(
    name: str,
    options: list[str],
    map_fn: str,
    models: Path,
    tmp_path: Path,
    tiny_recipe: Callable[..., Path],
    xrlhf: Run,
) -> None:
    out = tmp_path / f"{name}.jsonl"
    options = [str(models / "reward") if option == "reward" else option for option in options]
    made = xrlhf(
        *("generate", models / "policy", "--out", out, "--max-new-tokens", "12"), *options, models / "prompts.jsonl"
    )
    assert made.returncode == 0, made.stderr
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 24, made.stdout
    extra = RECIPE.format(
        size=len(practice_tokenizer()),
        tokenizer=str(models / "policy"),
        data=str(out),
        map_fn=map_fn,
        cache=str(tmp_path / "cache"),
    )
    recipe = tiny_recipe(name, validate=False, extra=extra)
    trained = xrlhf("train", recipe)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    log = trained.stdout + trained.stderr
    assert "24 groups" in log or "24 of 24" in log, log[-3000:]
