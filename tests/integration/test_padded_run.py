"""A model that cannot be packed, trained and used through the command line."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BLOOM = """
model["backbone"] = dict(
    type=backbone_from_config, model_type="bloom", vocab_size=32, hidden_size=16, n_layer=1, n_head=2
)
"""


def test_bloom_trains_and_scores(
    tiny_recipe: Callable[..., Path], xrlhf: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """It learns the pairs, says its layout once, and its export ranks them as training left it."""
    recipe = tiny_recipe(extra=BLOOM)
    run = xrlhf("train", recipe)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    log = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout)
    said = [line for line in log.splitlines() if "padded rows" in line]
    assert len(said) == 1
    assert "WARNING" in said[0]
    assert "BloomForSequenceClassification cannot be trained on packed groups: its attention cannot be repl" in said[0]
    losses = [float(value) for value in re.findall(r"Iter\(train\).* loss: ([\d.]+)", log)]
    assert losses[-1] < losses[0]
    accuracies = [float(value) for value in re.findall(r"Iter\(val\).* accuracy: ([\d.]+)", log)]
    assert accuracies[-1] > 0.9

    exported = xrlhf("convert", "pth_to_hf", recipe, tmp_path / "tiny" / "iter_20.pth", tmp_path / "exported")
    assert exported.returncode == 0, exported.stdout + exported.stderr
    texts = ["ask red say red good .", "ask red tell bad two ."]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    scored = xrlhf("score", tmp_path / "exported", "--data", data, "--out", tmp_path / "scores.jsonl")
    assert scored.returncode == 0, scored.stdout + scored.stderr
    good, bad = (json.loads(line)["score"] for line in (tmp_path / "scores.jsonl").read_text().splitlines())
    assert good > bad
