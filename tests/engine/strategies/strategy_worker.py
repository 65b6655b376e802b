"""One of several processes that train under a strategy; test_strategies starts it and reads what it writes.

Arguments: rank, world size, port, folder. ``jobs.json`` in the folder lists what to train; writes ``rank_N.pt``.
Checkpoints of every run: ``iter_N.pth``, and ``beside/``, where a file and shards were written while training went on.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toy import ToyDataset, answers, pairs, quantised_reward_model, run_of, tiny_policy, tiny_reward_model

from xrlhf.data.loader import EvalLoader
from xrlhf.devices import CpuDevice
from xrlhf.engine import checkpoint
from xrlhf.engine.launch import Ranks, leave_process_group, start_process_group
from xrlhf.engine.strategies import STRATEGIES_BY_NAME
from xrlhf.evaluation.batches import SetMetrics, evaluate_batches
from xrlhf.evaluation.set_loss import SetLoss
from xrlhf.losses.policy import DPOLoss, KTOLoss, LanguageModelLoss
from xrlhf.models import PolicyModel
from xrlhf.models.group_model import GroupModel

STEPS, SAVED_AT, THEN_AT = 20, 10, 15
ADAMW = {"optimizer": {"type": AdamW, "lr": 1e-2, "weight_decay": 0.1}, "max_grad_norm": 1.0}
SLOW_ADAMW = {**ADAMW, "optimizer": {"type": AdamW, "lr": 1e-3, "weight_decay": 0.1}}
"""For the larger model, whose loss would begin to jump, so that differences of rounding would grow."""
WARM_UP = {"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 15}


def job(
    name: str,
    strategy: str,
    options: dict[str, Any],
    *,
    model: str = "reward",
    num_steps: int = STEPS,
    resume: str = "",
    lora: bool = False,
    layout: str = "auto",
) -> dict[str, Any]:
    """What a process is told to train; the middle is where it saves, and where it goes on from ``resume``."""
    return {
        "name": name,
        "strategy": strategy,
        "options": options,
        "model": model,
        "num_steps": num_steps,
        "resume": resume,
        "lora": lora,
        "layout": layout,
        "launcher": "none" if strategy == "single" else "pytorch",
    }


def made(job: dict[str, Any], folder: Path, number: int) -> tuple[GroupModel, ToyDataset]:
    """The model of a job, the same every time, and so many groups to train it on."""
    dropout, adapters = (0.0, {"r": 2, "lora_alpha": 8}) if job["lora"] else (None, None)
    if job["model"] == "qlora":
        return quantised_reward_model(folder / "base"), pairs(number)
    if job["model"] == "reward":
        return tiny_reward_model(dropout, layout=job["layout"]), pairs(number)
    losses = {"sft": LanguageModelLoss(), "dpo": DPOLoss(beta=0.5), "kto": KTOLoss(beta=0.5)}
    return tiny_policy(losses[job["model"]], lora=adapters), answers(number)


def train_under(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train all steps, or from a checkpoint to the end; save half-way and at the end, and say what was seen."""
    num_steps = job["num_steps"]
    saved_at, then_at = num_steps * SAVED_AT // STEPS, num_steps * THEN_AT // STEPS
    model, dataset = made(job, folder, 24)
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
    run = run_of(
        model,
        dataset,
        work_dir,
        max_steps=num_steps,
        token_budget=40,
        strategy=strategy,
        optim_wrapper=SLOW_ADAMW if job["model"] == "qlora" else ADAMW,
        param_scheduler=[WARM_UP],
    )
    start = 0
    if job["resume"]:
        start = strategy.resume(str(folder / job["resume"]))["meta"]["step"]
    run.model.train()
    logs = steps(run, start, saved_at)
    for begin, end, suffix in ((saved_at, then_at, ""), (then_at, num_steps, ".pth")):
        meta = {"meta": {"step": begin}}
        if job["resume"]:
            logs += steps(run, max(start, begin), end)
            continue
        strategy.save_checkpoint(str(work_dir / f"iter_{begin}.pth"), extra_ckpt=meta)
        with held_back() as let_go:
            beside = work_dir / "beside" / f"iter_{begin}{suffix}"
            strategy.save_checkpoint(str(beside), extra_ckpt=meta, overlap=True)
            assert strategy.finish_saving(wait=False) is None
            logs += steps(run, begin, end)
            # Another process may be ahead by now, and this one sees what it has written.
            assert strategy.rank or not beside.exists()
            let_go.set()
            assert strategy.finish_saving() == beside
    strategy.save_checkpoint(str(work_dir / f"iter_{num_steps}.pth"), extra_ckpt={"meta": {"step": num_steps}})
    run.model.eval()
    # 7 batches: one process has one fewer than the other.
    loader = EvalLoader(
        made(job, folder, 7)[1],  # type: ignore[arg-type]
        token_budget=1,
        rank=strategy.rank,
        world_size=strategy.world_size,
    )
    return {"logs": logs, "evaluated": evaluated(model, loader, strategy, run.model)}


def evaluated(model: GroupModel, loader: EvalLoader, strategy: Any, wrapped: nn.Module) -> dict[str, float]:
    """What validation says of the set, all processes together."""
    if isinstance(model, PolicyModel):
        sums = SetLoss()
        sums.add(model, loader, strategy.device, wrapped, strategy.sum_over_ranks)
        return SetLoss.of_all(strategy.gather_objects(sums.sums)).compute()
    metrics = SetMetrics()
    own = evaluate_batches(model, loader, strategy.device, wrapped=wrapped)
    for state in strategy.gather_objects(own.state()):
        metrics.merge(state)
    return metrics.compute(["toy"])


@contextmanager
def held_back() -> Iterator[threading.Event]:
    """Nothing is written before the event is set."""
    let_go, write = threading.Event(), checkpoint.write_state

    def wait_and_write(*args: Any) -> Any:
        let_go.wait()
        return write(*args)

    checkpoint.write_state = wait_and_write
    try:
        yield let_go
    finally:
        let_go.set()
        checkpoint.write_state = write


def steps(run: Any, start: int, stop: int) -> list[dict[str, float]]:
    """What steps ``start:stop`` returned for the log."""
    logs = []
    for batches in run.loop.dataloader.steps(start, stop):
        logs.append(run.loop.run_step(batches))
        for scheduler in run.strategy.param_schedulers:
            scheduler.step()
    return logs


def main() -> None:
    rank, world_size, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    os.environ["MASTER_PORT"] = port
    start_process_group(CpuDevice(), Ranks(rank, world_size, rank, "pytorch"), timeout_seconds=120)
    jobs = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    found = {job["name"]: train_under(job, folder) for job in jobs}
    torch.save(found, folder / f"rank_{rank}.pt")
    leave_process_group()


if __name__ == "__main__":
    main()
