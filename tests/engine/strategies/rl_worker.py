"""One of several processes that learn from rewards under a strategy; test_rl_strategies starts it.

Arguments: rank, world size, port, folder. ``jobs.json`` in the folder lists what to train; writes ``rank_N.pt``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rl_toy import FixedRollouts, SlowRollouts, resume, rl_run, save, steps, tiny_actor_critic

from xrlhf.devices import CpuDevice
from xrlhf.engine.launch import Ranks, leave_process_group, start_process_group
from xrlhf.engine.strategies import STRATEGIES_BY_NAME
from xrlhf.losses.policy_gradient import PolicyGradientLoss
from xrlhf.rl import GAE, GroupRelative

STEPS, SAVED_AT = 9, 5
"""Four steps a rollout: saved within the second one."""

METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ppo": ({"critic": "shared"}, {"advantage": {"type": GAE}, "num_answers": 2, "kl_coef": 0.1}),
    "ppo_own": ({"critic": "own"}, {"advantage": {"type": GAE}, "num_answers": 1, "kl_coef": 0.1}),
    "grpo_lora": ({"lora": {"r": 2, "lora_alpha": 8}}, {"advantage": {"type": GroupRelative}, "num_answers": 3}),
}


def train_under(job: dict[str, Any], folder: Path) -> list[dict[str, float]]:
    """All steps, or from a checkpoint to the end; saves within a rollout and at the end."""
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
        rollouts=SlowRollouts(model) if job["draws"] else FixedRollouts(),
        token_budget=30,
        prompts_per_rollout=5,
        epochs=2,
        minibatches=2,
        max_rollouts=3,
        target_kl=10.0,
        **options,
    )
    if job["resume"]:
        resume(run, folder / job["resume"])
        return steps(run, STEPS - SAVED_AT)
    logs = steps(run, SAVED_AT)
    save(run, work_dir / f"iter_{SAVED_AT}.pth", SAVED_AT)
    logs += steps(run, STEPS - SAVED_AT)
    save(run, work_dir / f"iter_{STEPS}.pth", STEPS)
    return logs


def main() -> None:
    rank, world_size, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    os.environ["MASTER_PORT"] = port
    start_process_group(CpuDevice(), Ranks(rank, world_size, rank, "pytorch"), timeout_seconds=120)
    jobs = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    torch.save({job["name"]: train_under(job, folder) for job in jobs}, folder / f"rank_{rank}.pt")
    leave_process_group()


if __name__ == "__main__":
    main()
