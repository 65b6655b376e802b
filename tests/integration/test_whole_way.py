"""From preference data to a directory that plain transformers scores, through the command line alone.

The recipe is the shipped ``internlm2_1_8b_reward``; the model is swapped for a tiny Llama-shaped one on disk, the data
for a few rows of the same layout, everything else is as shipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)

from xrlhf.data.practice import practice_groups, practice_tokenizer

RECIPE = "configs/internlm2_1_8b_reward.py"
REWARD_TOKEN = "[UNUSED_TOKEN_130]"
STEPS = 6


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal language model with a tokenizer, and rows in the layout of the UltraFeedback set."""
    folder = tmp_path_factory.mktemp("whole_way")
    tokenizer = practice_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [
        {
            "source": "practice",
            "prompt": group.prompt[-1]["content"],
            "chosen": [*group.prompt, *group.responses[0]],
            "chosen-rating": 5.0,
            "rejected": [*group.prompt, *group.responses[1]],
            "rejected-rating": 2.0,
        }
        for group in practice_groups(600)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_shipped_recipe_on_a_tiny_model(
    parts: Path, repo_root: Path, tmp_path: Path, xrlhf: Callable[..., CompletedProcess[str]]
) -> None:
    source = {"source": str(parts / "rows.jsonl"), "map_fn": "xrlhf.data.map_fns.ultrafeedback_cleaned_map_fn"}
    options = [
        "--cfg-options",
        f"pretrained_model_name_or_path={parts / 'base'}",
        f"sources=[{source}]",
        f"work_dir={tmp_path / 'run'}",
        "precision=float32",
    ]
    recipe = str(repo_root / RECIPE)

    length = [f"train_cfg.max_steps={STEPS}", "train_cfg.max_epochs=None"]
    trained = xrlhf("train", recipe, *options, *length, "default_hooks.logger.interval=1")
    assert trained.returncode == 0, trained.stderr[-2000:]
    scalars = (tmp_path / "run").glob("*/vis_data/scalars.json")
    log = [json.loads(line) for path in scalars for line in path.read_text(encoding="utf-8").splitlines()]
    # Focal loss of a zero head is ln 2; the barrier gives 2 x 0.01 x -2 ln 5 back: XTuner's log begins here too.
    assert log[0]["loss"] == pytest.approx(0.6931 - 0.04 * 1.6094, abs=1e-4)

    checkpoint = tmp_path / "run" / f"iter_{STEPS}.pth"
    out = tmp_path / "reward_model"
    converted = xrlhf("convert", "pth_to_hf", recipe, str(checkpoint), str(out), *options)
    assert converted.returncode == 0, converted.stderr[-2000:]

    tested = [
        xrlhf("test", recipe, "--checkpoint", str(place), "--out", str(tmp_path / f"{place.name}.json"), *options)
        for place in (checkpoint, out)
    ]
    assert [run.returncode for run in tested] == [0, 0], tested[0].stderr[-1000:] + tested[1].stderr[-1000:]
    of_checkpoint, of_export = (
        json.loads((tmp_path / f"{place.name}.json").read_text(encoding="utf-8")) for place in (checkpoint, out)
    )
    assert of_export["margin"] == pytest.approx(of_checkpoint["margin"], abs=1e-5)

    conversations = [
        [*group.prompt, *response] for group in practice_groups(8, part="held_out") for response in group.responses
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": c}) + "\n" for c in conversations), encoding="utf-8")
    scored = xrlhf("score", str(out), "--data", str(rows), "--out", str(tmp_path / "scored.jsonl"))
    assert scored.returncode == 0, scored.stderr[-2000:]
    ours = [json.loads(line)["score"] for line in (tmp_path / "scored.jsonl").read_text().splitlines()]

    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    texts = [tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in conversations]
    assert all(text.endswith(REWARD_TOKEN) for text in texts)
    with torch.no_grad():
        plain = [model(**tokenizer(text, return_tensors="pt")).logits[0, 0].item() for text in texts]
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, function_to_apply="none")
    piped = [item["score"] for item in classify(texts, batch_size=4)]
    assert ours == pytest.approx(plain, abs=1e-5)
    assert ours == pytest.approx(piped, abs=1e-5)
    assert max(plain) - min(plain) > 1e-4, "all scores are alike, so the comparison shows nothing"
