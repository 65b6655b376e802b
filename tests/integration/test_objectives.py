"""The recipes on rated practice answers, from training to scores, through the command line alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SHORT = (
    "max_epochs=1",
    "train_dataloader.dataset.sources.0.source.num_groups=192",
    "val_dataloader.dataset.sources.0.source.num_groups=24",
    "model.backbone.hidden_size=32",
    "model.backbone.head_init=normal",
)
STEPS = 6


def scalars(run: Path) -> list[dict[str, Any]]:
    (file,) = run.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def ran(result: CompletedProcess[str]) -> CompletedProcess[str]:
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_single_ratings(xrlhf: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    """Answers without a rival have an error and a score, and no accuracy, in training and in validation."""
    alone = "val_dataloader.dataset.sources.0.source.num_responses=1"
    ran(xrlhf("train", "tiny_ratings_cpu", "--work-dir", "run", "--cfg-options", *SHORT, alone))
    rows = scalars(tmp_path / "run")
    trained = [row for row in rows if "loss" in row]
    assert trained
    for row in trained:
        assert row["mse"] == pytest.approx(row["loss"])
        assert "score_mean" in row
        assert not {"acc", "margin", "chosen_score_mean", "rejected_score_mean"} & row.keys()
    (validated,) = [row for row in rows if "val/mse" in row]
    assert validated["val/num_groups_with_target"] == 24
    assert -1 <= validated["val/correlation"] <= 1
    assert "val/accuracy" not in validated


def test_attributes_the_whole_way(xrlhf: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    """The checkpoint, the folded export and the one with attributes give the same metrics and the same scores."""
    options = ("--cfg-options", *SHORT)
    ran(xrlhf("train", "tiny_attributes_cpu", "--work-dir", "run", *options))
    rows = scalars(tmp_path / "run")
    assert {"mse", "mse_content", "mse_manner"} <= next(row.keys() for row in rows if "loss" in row)
    (validated,) = [row for row in rows if "val/mse" in row]
    assert {"val/accuracy", "val/correlation_content", "val/correlation_manner"} <= validated.keys()

    shown = ran(xrlhf("log-dataset", "tiny_attributes_cpu", *options)).stdout
    assert ", content " in shown
    assert ", manner " in shown

    checkpoint = f"run/iter_{STEPS}.pth"
    ran(xrlhf("convert", "pth_to_hf", "tiny_attributes_cpu", checkpoint, "folded", *options))
    ran(xrlhf("convert", "pth_to_hf", "tiny_attributes_cpu", checkpoint, "kept", "--keep-attributes", *options))
    metrics: dict[str, dict[str, float]] = {}
    for name in (checkpoint, "folded", "kept"):
        out = f"{name.replace('/', '_')}.json"
        ran(xrlhf("test", "tiny_attributes_cpu", "--checkpoint", name, "--out", out, *options))
        metrics[name] = json.loads((tmp_path / out).read_text(encoding="utf-8"))
    assert metrics["kept"] == pytest.approx(metrics[checkpoint], abs=1e-5)
    shared = metrics["folded"].keys()
    assert {"accuracy", "margin"} <= shared
    assert not any(name.startswith("mse") for name in shared)
    assert metrics["folded"] == pytest.approx({name: metrics[checkpoint][name] for name in shared}, abs=1e-5)

    row = {"prompt": "How do I keep bread fresh?", "responses": ["Wrap it in cloth.", "I do not care."]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    scores = []
    for name in ("folded", "kept"):
        ran(xrlhf("score", name, "--data", "rows.jsonl", "--out", f"{name}.jsonl"))
        scores.append(json.loads((tmp_path / f"{name}.jsonl").read_text(encoding="utf-8"))["scores"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[0][0] != pytest.approx(scores[0][1], abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "num_responses", "logged"),
    [
        ("xrlhf.losses.BinaryLoss", 1, "label_acc"),
        ("xrlhf.losses.PlackettLuceLoss", 4, "top_acc"),
        ("xrlhf.losses.DavidsonLoss", 2, "tie_prob"),
    ],
)
def test_the_alternatives_in_the_comments(
    xrlhf: Callable[..., CompletedProcess[str]], tmp_path: Path, loss: str, num_responses: int, logged: str
) -> None:
    ran(xrlhf("copy-cfg", "tiny_ratings_cpu", "."))
    recipe = tmp_path / "tiny_ratings_cpu_copy.py"
    name = loss.rpartition(".")[2]
    text = recipe.read_text(encoding="utf-8")
    (commented,) = [line for line in text.splitlines() if f"dict(type={name}" in line]
    written = commented[commented.index("dict(") :]
    text = text.replace("dict(type=RegressionLoss, rating_range=(-9.0, 6.0))", written)
    recipe.write_text(text.replace("import RegressionLoss", f"import {name}"), encoding="utf-8")
    options = (*SHORT, f"num_responses={num_responses}")
    ran(xrlhf("train", str(recipe), "--work-dir", "run", "--cfg-options", *options))
    assert any(logged in row for row in scalars(tmp_path / "run"))
