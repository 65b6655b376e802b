"""What a user sees of a run, and what it leaves behind."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_run import FinishedRun

from xrlhf.config import load_recipe
from xrlhf.engine.checkpoint import load_checkpoint, verify
from xrlhf.engine.hooks.curves import read_curves

pytestmark = pytest.mark.slow

FIELDS = [
    *("lr", "eta", "time", "data_time", "memory", "loss", "acc", "margin", "chosen_score_mean", "rejected_score_mean"),
    *("num_samples", "num_tokens", "grad_norm", "tokens_per_second", "groups_per_second", "mfu"),
]


def lines_with(run: FinishedRun, text: str) -> list[str]:
    return [line for line in run.log.splitlines() if text in line]


# ---------------------------------------------------------------- what is printed


def test_the_training_lines(unbroken: FinishedRun) -> None:
    lines = lines_with(unbroken, "Iter(train)")
    assert [re.search(r"\[ ?(\d+)/20\]", line).group(1) for line in lines] == ["5", "10", "15", "20"]  # type: ignore[union-attr]
    for line in lines:
        names = re.findall(r"(\w+): ", line.partition("]")[2])
        assert names == FIELDS
        assert re.search(r"num_samples: 8  num_tokens: \d+  ", line)
        assert re.search(r"tokens_per_second: \d+  groups_per_second: \d+\.\d{4}  mfu: 0\.\d{4}$", line)
    losses = [float(re.search(r" loss: ([\d.]+)", line).group(1)) for line in lines]  # type: ignore[union-attr]
    assert losses[-1] < losses[0]


def test_the_validation_lines(unbroken: FinishedRun) -> None:
    """One after step 10, one at the end; the score of the best answer is above the others' by the margin."""
    lines = lines_with(unbroken, "Iter(val)")
    assert len(lines) == 2
    values = {name: float(value) for name, value in re.findall(r"(\w+): (-?[\d.]+)", lines[-1].partition("]")[2])}
    assert values["num_groups"] == 16
    assert values["accuracy"] > 0.9
    assert values["accuracy_low"] <= values["accuracy"] <= values["accuracy_high"]
    assert values["chosen_score_mean"] - values["rejected_score_mean"] == pytest.approx(values["margin"], abs=2e-4)


def test_the_rest_of_the_log(unbroken: FinishedRun) -> None:
    log = unbroken.log
    assert "device cpu (" in log
    assert "strategy SingleStrategy, 1 process(es)" in log
    assert re.search(r"matrix products: [\d.,]+ GFLOP/s in float32, the rate mfu is measured against", log)
    assert "1,104 of them trained; 20 steps of 8 groups, 64 groups in the data; files go to " in log
    assert [int(step) for step in re.findall(r"saved \S+/iter_(\d+)\.pth", log)] == [5, 10, 15, 20]
    assert f"curves drawn to {unbroken.work_dir / 'curves.png'}" in log
    # The start fits a screen.
    assert log.splitlines().index(lines_with(unbroken, "Iter(train)")[0]) < 24


def test_nothing_else_is_printed(unbroken: FinishedRun) -> None:
    """No warning of a library, no traceback, no line twice."""
    assert unbroken.result.stderr == ""
    assert "Warning" not in unbroken.log
    messages = [line.partition(" - INFO - ")[2] for line in unbroken.log.splitlines()]
    messages = [message for message in messages if message and not message.startswith("Iter(")]
    assert len(messages) == len(set(messages))


# ---------------------------------------------------------------- what is left behind


def test_the_run_directory(unbroken: FinishedRun) -> None:
    starts = [path for path in unbroken.work_dir.iterdir() if path.is_dir()]
    assert len(starts) == 1
    checkpoints = [f"iter_{step}.pth" for step in (5, 10, 15, 20)]
    assert {path.name for path in unbroken.work_dir.iterdir()} == {
        *checkpoints,
        *[f"{name}.json" for name in checkpoints],
        *("last_checkpoint", "tiny.py", "data_report.json", "curves.png", starts[0].name),
    }
    assert (unbroken.work_dir / "last_checkpoint").read_text() == "iter_20.pth"
    assert (starts[0] / f"{starts[0].name}.log").is_file()
    assert len(list((starts[0] / "vis_data").glob("events.out.tfevents.*"))) == 1
    assert (unbroken.work_dir / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_log_file_holds_what_was_printed(unbroken: FinishedRun) -> None:
    (file,) = unbroken.work_dir.glob("*/*.log")
    written = file.read_text()
    for line in unbroken.log.splitlines():
        assert line.partition(" - ")[2] in written


def test_the_scalars(unbroken: FinishedRun) -> None:
    (file,) = unbroken.work_dir.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 10, 15, 20, 20]
    training = [row for row in rows if "loss" in row]
    assert all(set(FIELDS) - {"eta"} <= set(row) for row in training)
    curves = read_curves(unbroken.work_dir)
    assert [step for step, _ in curves["loss"]] == [5, 10, 15, 20]
    assert [step for step, _ in curves["val/accuracy"]] == [10, 20]


def test_tensorboard_reads_the_curves(unbroken: FinishedRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = unbroken.work_dir.glob("*/vis_data")
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"loss", "lr", "acc", "grad_norm", "mfu", "groups_per_second", "val/accuracy"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("loss")] == [5, 10, 15, 20]
    assert [event.step for event in events.Scalars("val/accuracy")] == [10, 20]


def test_the_data_report(unbroken: FinishedRun) -> None:
    report = json.loads((unbroken.work_dir / "data_report.json").read_text())
    for split, used in (("train", 64), ("val", 16)):
        (source,) = report[split].values()
        assert (source["num_rows"], source["num_groups_used"]) == (64, used)


def test_the_resolved_recipe_reads_back(unbroken: FinishedRun) -> None:
    written, source = load_recipe(unbroken.work_dir / "tiny.py"), load_recipe(unbroken.recipe)
    assert written.to_dict() == {**source.to_dict(), "hub_token": "***"}


def test_no_file_holds_the_secret(unbroken: FinishedRun) -> None:
    for path in unbroken.work_dir.rglob("*"):
        assert not path.is_file() or b"hf_0123456789abcdef" not in path.read_bytes(), path
    assert "hf_0123456789abcdef" not in unbroken.log


def test_the_checkpoints(unbroken: FinishedRun) -> None:
    """Plain, whole, and with all that going on needs."""
    for step in (5, 10, 15, 20):
        path = unbroken.work_dir / f"iter_{step}.pth"
        assert verify(path) is None
        assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
        state = load_checkpoint(path)
        assert set(state) == {"state_dict", "optimizer", "param_schedulers", "meta"}
        assert state["meta"]["step"] == step
        assert state["meta"]["dataset_sizes"] == [64]
        assert set(state["meta"]["versions"]) == {"xrlhf", "torch", "transformers", "mmengine"}
        assert "***" in state["meta"]["recipe"]


# ---------------------------------------------------------------- what can be done with it


def test_the_checkpoint_scores_as_it_did_in_training(
    unbroken: FinishedRun, xrlhf: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """And so does its export, which must not be written over something else."""
    recipe, checkpoint = unbroken.recipe, unbroken.work_dir / "iter_20.pth"
    tested = xrlhf("test", recipe, "--checkpoint", checkpoint, "--out", "metrics.json")
    assert tested.returncode == 0, tested.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    last = lines_with(unbroken, "Iter(val)")[-1]
    for name in ("accuracy", "margin", "chosen_score_mean", "num_groups"):
        assert f"  {name}: {metrics[name]:.4f}"[: -5 if name == "num_groups" else None] in last
    assert re.search(r"^num_groups +16$", tested.stdout, re.MULTILINE)

    converted = xrlhf("convert", "pth_to_hf", recipe, checkpoint, "hf")
    assert converted.returncode == 0, converted.stderr
    again = xrlhf("convert", "pth_to_hf", recipe, checkpoint, "hf")
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1] == (
        "error: hf exists and is not empty: choose another directory, or remove it"
    )
    exported = xrlhf("test", recipe, "--checkpoint", "hf", "--out", "exported.json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads((tmp_path / "exported.json").read_text()) == pytest.approx(metrics, abs=1e-5)


def test_another_architecture_is_refused(
    unbroken: FinishedRun, xrlhf: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    result = xrlhf(
        "test", unbroken.recipe, "--checkpoint", unbroken.work_dir / "iter_20.pth", "model.backbone.hidden_size=32"
    )
    assert result.returncode == 2
    assert f"error: {unbroken.work_dir / 'iter_20.pth'} is of another model than the recipe: it has " in result.stderr
    assert "in place of" in result.stderr


def test_overrides_take_effect_wherever_they_stand(
    tiny_recipe: Callable[..., Path], xrlhf: Callable[..., Any], tmp_path: Path
) -> None:
    """Before and after ``--cfg-options``, and in what the recipe computes from the value."""
    result = xrlhf(
        *("train", tiny_recipe(validate=False), "train_cfg.max_steps=2", "--cfg-options", "lr=0.5", "seed=4"),
        *("default_hooks.curves=None", "--work-dir", "other", "--seed", "9", "--device", "cpu", "--strategy", "single"),
    )
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "tiny").exists()
    written = load_recipe(tmp_path / "other" / "tiny.py")
    assert (written.lr, written.optim_wrapper.optimizer.lr, written.train_cfg.max_steps) == (0.5, 0.5, 2)
    assert (written.seed, written.randomness.seed, written.strategy) == (4, 9, "single")
    assert load_checkpoint(tmp_path / "other" / "iter_2.pth")["meta"]["seed"] == 9
    assert not (tmp_path / "other" / "curves.png").exists()


def test_going_on_from_weights_alone_begins_at_the_first_step(
    unbroken: FinishedRun, tiny_recipe: Callable[..., Path], xrlhf: Callable[..., Any], tmp_path: Path
) -> None:
    """The first losses of the new run are those of a trained model."""
    result = xrlhf(
        *("train", tiny_recipe(), "--load-from", unbroken.work_dir / "iter_20.pth"),
        *("train_cfg.max_steps=5", "default_hooks.curves=None"),
    )
    assert result.returncode == 0, result.stderr
    assert f"loaded the weights of {unbroken.work_dir / 'iter_20.pth'}" in result.stdout
    curves = read_curves(tmp_path / "tiny")
    assert [step for step, _ in curves["loss"]] == [5]
    assert curves["loss"][0][1] < read_curves(unbroken.work_dir)["loss"][0][1] / 2


def test_the_command_is_installed_as_it_is_documented(xrlhf: Callable[..., Any]) -> None:
    result = xrlhf("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("xrlhf ")
