"""Reinforcement learning on two processes equals one: logs, weights, and runs that go on within a rollout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from rl_worker import METHODS, SAVED_AT, STEPS, train_under
from same_runs import assert_same_weights

pytestmark = pytest.mark.slow

STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("ddp", {}),
    "fsdp": ("fsdp", {}),
    # Weights of so small a model would otherwise never be split.
    "zero3": ("zero3", {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}),
}
DRAWN = [("ddp", "ppo"), ("fsdp", "ppo"), ("zero3", "ppo"), ("zero3", "grpo_lora")]
TIMES = ("seconds", "memory", "tokens_per_second", "groups_per_second")


def job(method: str, strategy: str = "single", resume: str = "", draws: bool = False) -> dict[str, Any]:
    """What a process is told to train; ``draws`` has the policy itself draw the answers."""
    kind, options = STRATEGIES.get(strategy, ("single", {}))
    return {
        "name": f"{strategy}_{method}{'_drawn' if draws else ''}{'_resumed' if resume else ''}",
        "method": method,
        "strategy": kind,
        "options": options,
        "resume": resume,
        "draws": draws,
        "launcher": "none" if kind == "single" else "pytorch",
    }


def assert_same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert mine.keys() == other.keys()
        for name, value in other.items():
            if not name.startswith(TIMES):
                assert mine[name] == pytest.approx(value, rel=1e-4, abs=2e-5), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, float]]]]:
    """The folder of all checkpoints, and what process 0 saw of every job."""
    folder = tmp_path_factory.mktemp("rl_strategies")
    single = [*(job(method) for method in METHODS), *(job(method, draws=True) for method in ("ppo", "grpo_lora"))]
    found = {item["name"]: train_under(item, folder) for item in single}
    jobs = [job(method, strategy) for method in METHODS for strategy in STRATEGIES]
    jobs += [job(method, "ddp", f"single_{method}/iter_{SAVED_AT}.pth") for method in METHODS]
    jobs.append(job("ppo", "zero3", f"single_ppo/iter_{SAVED_AT}.pth"))
    jobs += [job(method, strategy, draws=True) for strategy, method in DRAWN]
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    run_processes(Path(__file__).with_name("rl_worker.py"), folder)
    ranks = [torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(2)]
    for name in ranks[0]:
        for mine, other in zip(ranks[0][name], ranks[1][name], strict=True):
            assert mine["loss"] == other["loss"]
            assert mine["reward"] == other["reward"]
    return folder, {**found, **ranks[0]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_equal_one(
    trained: tuple[Path, dict[str, list[dict[str, float]]]], strategy: str, method: str
) -> None:
    folder, found = trained
    assert_same(found[f"{strategy}_{method}"], found[f"single_{method}"])
    assert_same_weights(folder, f"{strategy}_{method}", f"single_{method}", STEPS)


@pytest.mark.parametrize(("strategy", "method"), DRAWN)
def test_two_processes_draw_what_one_draws(
    trained: tuple[Path, dict[str, list[dict[str, float]]]], strategy: str, method: str
) -> None:
    """From whole weights, also where they are split: as many tokens on each process as its answers have."""
    folder, found = trained
    assert_same(found[f"{strategy}_{method}_drawn"], found[f"single_{method}_drawn"])
    assert_same_weights(folder, f"{strategy}_{method}_drawn", f"single_{method}_drawn", STEPS)


@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
def test_rollouts_that_fail_on_one_process_end_on_all(
    trained: tuple[Path, dict[str, list[dict[str, float]]]], strategy: str
) -> None:
    """The second process fails while it draws; afterwards weights are split as before, and the next step is taken."""
    folder, _ = trained
    for rank in range(2):
        (found,) = torch.load(folder / f"failures_{rank}.pt", weights_only=False)[strategy]
        assert found == {"message": "no room for prompt 3", "inside": True, "is_split_again": True, "loss": True}


@pytest.mark.parametrize(("strategy", "method"), [*(("ddp", method) for method in METHODS), ("zero3", "ppo")])
def test_two_processes_go_on_where_one_stopped_within_a_rollout(
    trained: tuple[Path, dict[str, list[dict[str, float]]]], strategy: str, method: str
) -> None:
    _, found = trained
    assert_same(found[f"{strategy}_{method}_resumed"], found[f"single_{method}"][SAVED_AT:])
