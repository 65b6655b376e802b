"""One of several processes that learn from rewards under a strategy; test_rl_strategies starts it.

Arguments: rank, world size, port, folder. ``jobs.json`` in the folder lists what to train; writes ``rank_N.pt``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rl_toy import FixedRollouts, SlowRollouts, resume, rl_run, save, steps, tiny_actor_critic

from xrlhf.devices import CpuDevice
from xrlhf.engine.launch import Ranks, leave_process_group, start_process_group
from xrlhf.engine.strategies import STRATEGIES_BY_NAME
from xrlhf.errors import TrainingError
from xrlhf.losses.policy_gradient import PolicyGradientLoss
from xrlhf.rl import GAE, GroupRelative, PromptRow, Sample

STEPS, SAVED_AT = 9, 5
"""Four steps a rollout: saved within the second one."""

METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ppo": ({"critic": "shared"}, {"advantage": {"type": GAE}, "num_answers": 2, "kl_coef": 0.1}),
    "ppo_own": ({"critic": "own"}, {"advantage": {"type": GAE}, "num_answers": 1, "kl_coef": 0.1}),
    "grpo_lora": (
        {"lora": {"r": 2, "lora_alpha": 8}},
        {"advantage": {"type": GroupRelative}, "num_answers": 3, "dynamic_sampling": 1},
    ),
}


class FailingOnOne(SlowRollouts):
    """Fails on the second process, once, after it has drawn."""

    num_calls = 0
    was_whole = False

    def sample(self, rows: Sequence[PromptRow], k: int, *, key: int) -> list[list[Sample]]:
        self.num_calls += 1
        found = super().sample(rows, k, key=key)
        self.was_whole = not is_split(self.policy)
        if self.num_calls == 1 and torch.distributed.get_rank() == 1:
            raise TrainingError("no room for prompt 3")
        return found


def is_split(model: Any) -> bool:
    """Whether this process holds a part of the language model's weights."""
    weights = [weight for module in model.hf_model.modules() for weight in module._parameters.values()]
    sizes = [weight.numel() for weight in weights if weight is not None and not isinstance(weight, DTensor)]
    return any(isinstance(weight, DTensor) for weight in weights) or 0 in sizes


def fail_under(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What every process sees of a rollout that fails on one, and whether the next one is learnt from."""
    run, model = run_under({**job, "name": f"{job['name']}_failing"}, folder, FailingOnOne)
    found: dict[str, Any] = {}
    try:
        steps(run, 1)
    except TrainingError as error:
        found["message"] = str(error)
    found["inside"] = run.rollouts.was_whole
    found["is_split_again"] = is_split(model)
    (step,) = steps(run, 1)
    return {**found, "loss": "loss" in step}


def train_under(job: dict[str, Any], folder: Path) -> list[dict[str, float]]:
    """All steps, or from a checkpoint to the end; saves within a rollout and at the end."""
    run, _ = run_under(job, folder, SlowRollouts if job["draws"] else None)
    if job["resume"]:
        resume(run, folder / job["resume"])
        return steps(run, STEPS - SAVED_AT)
    work_dir = folder / job["name"]
    logs = steps(run, SAVED_AT)
    save(run, work_dir / f"iter_{SAVED_AT}.pth", SAVED_AT)
    logs += steps(run, STEPS - SAVED_AT)
    save(run, work_dir / f"iter_{STEPS}.pth", STEPS)
    return logs


def run_under(job: dict[str, Any], folder: Path, draws_with: Any) -> tuple[Any, Any]:
    """The run of a job, and its model; answers do not depend on the model where ``draws_with`` is None."""
    model_options, options = METHODS[job["method"]]
    loss = PolicyGradientLoss(kl_coef=0.05, normalise="answers" if "lora" in model_options else "tokens")
    model = tiny_actor_critic(loss, **model_options)
    work_dir = folder / job["name"]
    preset = STRATEGIES_BY_NAME[job["strategy"]]
    strategy = preset["type"](
        device=CpuDevice(),
        work_dir=str(work_dir),
        env_kwargs={"launcher": job["launcher"], "randomness": {"seed": 0}},
        experiment_name=job["name"],
        **{name: value for name, value in preset.items() if name != "type"},
        **job["options"],
    )
    run = rl_run(
        model,
        work_dir,
        strategy=strategy,
        rollouts=FixedRollouts() if draws_with is None else draws_with(model),
        token_budget=30,
        prompts_per_rollout=5,
        epochs=2,
        minibatches=2,
        max_rollouts=3,
        target_kl=10.0,
        **options,
    )
    return run, model


def main() -> None:
    rank, world_size, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    os.environ["MASTER_PORT"] = port
    start_process_group(CpuDevice(), Ranks(rank, world_size, rank, "pytorch"), timeout_seconds=120)
    jobs = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    torch.save({job["name"]: train_under(job, folder) for job in jobs}, folder / f"rank_{rank}.pt")
    failures: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        if job["draws"] and job["method"] == "ppo" and job["strategy"] != "ddp":
            failures.setdefault(job["strategy"], []).append(fail_under(job, folder))
    torch.save(failures, folder / f"failures_{rank}.pt")
    leave_process_group()


if __name__ == "__main__":
    main()
