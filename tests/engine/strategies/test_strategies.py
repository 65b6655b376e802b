"""Every strategy on two processes equals one process: losses, weights, and runs that go on under another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from strategy_worker import SAVED_AT, STEPS, train_under

pytestmark = pytest.mark.slow

STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("ddp", {}),
    "fsdp": ("fsdp", {}),
    "fsdp_kept": ("fsdp", {"reshard_after_forward": False}),
    "zero1": ("zero1", {}),
    "zero2": ("zero2", {}),
    "zero2_offload": ("zero2_offload", {}),
    # Weights of so small a model would otherwise never be split.
    "zero3": ("zero3", {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}),
    "zero3_offload": ("zero3_offload", {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}),
}


# Models that are split over processes have to run equally often everywhere, however many rows a process pads.
PADDED = ("fsdp", "zero3")


def job(name: str, strategy: str, options: dict[str, Any], *, resume: str = "") -> dict[str, Any]:
    """What a process is told; the name says what kind of model is trained."""
    return {
        "name": name,
        "strategy": strategy,
        "options": options,
        "resume": resume,
        "lora": name.endswith("_lora"),
        "layout": "padded" if name.endswith("_padded") else "auto",
        "launcher": "none" if strategy == "single" else "pytorch",
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of all checkpoints, and what process 0 saw of every job."""
    folder = tmp_path_factory.mktemp("strategies")
    single = {name: train_under(job(name, "single", {}), folder) for name in ("one", "one_lora", "one_padded")}
    jobs = []
    for name, (strategy, options) in STRATEGIES.items():
        jobs.append(job(name, strategy, options))
        jobs.append(job(f"{name}_lora", strategy, options))
        if name in PADDED:
            jobs.append(job(f"{name}_padded", strategy, options))
        jobs.append(job(f"one_to_{name}", strategy, options, resume=f"one/iter_{SAVED_AT}.pth"))
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    run_processes(Path(__file__).with_name("strategy_worker.py"), folder)
    found = [torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in (0, 1)]
    for name in found[0]:
        # Speeds differ between processes; nothing else may.
        for mine, other in zip(found[0][name]["logs"], found[1][name]["logs"], strict=True):
            assert mine["loss"] == other["loss"]
            assert mine["grad_norm"] == other["grad_norm"]
    return folder, {**single, **found[0]}


def weights(folder: Path, name: str, step: int = STEPS) -> dict[str, torch.Tensor]:
    return torch.load(folder / name / f"iter_{step}.pth", weights_only=True)["state_dict"]


def assert_same_weights(folder: Path, name: str, other: str) -> None:
    expected, found = weights(folder, other), weights(folder, name)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)


def assert_same_logs(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for mine, other in zip(found, expected, strict=True):
        for key in ("loss", "grad_norm", "acc", "margin", "num_samples", "num_tokens"):
            assert mine[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), key


@pytest.mark.parametrize("adapters", ["", "_lora"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_equal_one(trained: tuple[Path, dict[str, Any]], name: str, adapters: str) -> None:
    folder, found = trained
    assert_same_logs(found[name + adapters]["logs"], found["one" + adapters]["logs"])
    assert_same_weights(folder, name + adapters, "one" + adapters)


@pytest.mark.parametrize("name", PADDED)
def test_two_processes_equal_one_in_padded_rows(trained: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, found = trained
    assert_same_logs(found[f"{name}_padded"]["logs"], found["one_padded"]["logs"])
    assert_same_weights(folder, f"{name}_padded", "one_padded")


@pytest.mark.parametrize("name", STRATEGIES)
def test_validation_counts_every_group_once(trained: tuple[Path, dict[str, Any]], name: str) -> None:
    """Seven batches on two processes: one of them computes one that does not count."""
    _, found = trained
    expected = found["one"]["evaluated"]
    assert found[name]["evaluated"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_process_goes_on_under_the_strategy(trained: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, found = trained
    assert_same_logs(found[f"one_to_{name}"]["logs"], found["one"]["logs"][SAVED_AT:])
    assert_same_weights(folder, f"one_to_{name}", "one")


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_process_goes_on_from_the_strategy(trained: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, found = trained
    resumed = train_under(job(f"{name}_to_one", "single", {}, resume=f"{name}/iter_{SAVED_AT}.pth"), folder)
    assert_same_logs(resumed["logs"], found["one"]["logs"][SAVED_AT:])
    assert_same_weights(folder, f"{name}_to_one", "one")
