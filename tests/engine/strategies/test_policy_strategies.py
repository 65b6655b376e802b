"""Policies under every strategy on two processes equal one process: losses, weights, and runs that go on from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from same_runs import assert_same_logs, assert_same_weights, found_together
from strategy_worker import job, train_under

pytestmark = pytest.mark.slow

STEPS, SAVED_AT = 6, 3
POLICIES = ("sft", "dpo", "dpo_lora", "kto")
"""The loss of tokens; with a frozen copy for the reference; with the adapters switched off for it; with an estimate of
the divergence that all processes make together."""
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("ddp", {}),
    "fsdp": ("fsdp", {}),
    "zero2": ("zero2", {}),
    # Weights of so small a model would otherwise never be split.
    "zero3": ("zero3", {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}),
}
PREFERENCES = ("reward_acc", "reward_margin", "chosen_logp_mean", "rejected_logp_mean")


def job_of(policy: str, name: str, strategy: str, options: dict[str, Any], *, resume: str = "") -> dict[str, Any]:
    model, _, lora = policy.partition("_")
    return job(f"{name}_{policy}", strategy, options, model=model, num_steps=STEPS, resume=resume, lora=bool(lora))


def logged(policy: str) -> tuple[str, ...]:
    return {"sft": (), "kto": (*PREFERENCES, "kl")}.get(policy, PREFERENCES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of all checkpoints, and what process 0 saw of every job."""
    folder = tmp_path_factory.mktemp("policy_strategies")
    single = {f"one_{policy}": train_under(job_of(policy, "one", "single", {}), folder) for policy in POLICIES}
    jobs = []
    for name, (strategy, options) in STRATEGIES.items():
        for policy in POLICIES:
            jobs.append(job_of(policy, name, strategy, options))
            resume = f"one_{policy}/iter_{SAVED_AT}.pth"
            jobs.append(job_of(policy, f"one_to_{name}", strategy, options, resume=resume))
    return folder, {**single, **found_together(jobs, folder)}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_equal_one(trained: tuple[Path, dict[str, Any]], name: str, policy: str) -> None:
    folder, found = trained
    expected = found[f"one_{policy}"]["logs"]
    assert abs(expected[-1]["loss"] - expected[0]["loss"]) > 0.01, "nothing was learnt, so nothing is compared"
    assert_same_logs(found[f"{name}_{policy}"]["logs"], expected, logged(policy))
    assert_same_weights(folder, f"{name}_{policy}", f"one_{policy}", STEPS)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_validation_counts_every_group_once(trained: tuple[Path, dict[str, Any]], name: str, policy: str) -> None:
    """Seven batches on two processes: one of them computes one that does not count."""
    _, found = trained
    expected = found[f"one_{policy}"]["evaluated"]
    assert found[f"{name}_{policy}"]["evaluated"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_one_process_goes_on_under_the_strategy(trained: tuple[Path, dict[str, Any]], name: str, policy: str) -> None:
    folder, found = trained
    resumed = f"one_to_{name}_{policy}"
    assert_same_logs(found[resumed]["logs"], found[f"one_{policy}"]["logs"][SAVED_AT:], logged(policy))
    assert_same_weights(folder, resumed, f"one_{policy}", STEPS)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_process_goes_on_from_zero_3(trained: tuple[Path, dict[str, Any]], policy: str) -> None:
    """Its checkpoint is put together of shares that only it has."""
    folder, found = trained
    resume = f"zero3_{policy}/iter_{SAVED_AT}.pth"
    resumed = train_under(job_of(policy, "zero3_to_one", "single", {}, resume=resume), folder)
    assert_same_logs(resumed["logs"], found[f"one_{policy}"]["logs"][SAVED_AT:], logged(policy))
    assert_same_weights(folder, f"zero3_to_one_{policy}", f"one_{policy}", STEPS)
