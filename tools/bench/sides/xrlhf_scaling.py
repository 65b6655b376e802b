"""One process of a run of ``scaling.py``: real training steps under a strategy, and a checkpoint.

Argument: the job's file. RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT say which of how many this is.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.optim import AdamW

from xrlhf.data.loader import StepLoader
from xrlhf.data.plan import GroupStream
from xrlhf.devices import CpuDevice
from xrlhf.engine.launch import leave_process_group, ranks_from_environment, start_process_group
from xrlhf.engine.loops import GroupTrainLoop
from xrlhf.engine.strategies import STRATEGIES_BY_NAME
from xrlhf.losses import RankingLoss
from xrlhf.models import RewardModel
from xrlhf.structures import TokenizedGroup, as_ids

__all__ = ["ADAMW", "Pairs"]

ADAMW = {"optimizer": {"type": AdamW, "lr": 1e-4}, "max_grad_norm": 1.0}


class Pairs:
    """Pairs of random ids, all of one length, with what loaders ask of a data set."""

    def __init__(self, number: int, prompt: int, response: int, vocab_size: int) -> None:
        generator = np.random.default_rng(0)
        self.groups = []
        for row in range(number):
            ids = [as_ids(generator.integers(5, vocab_size, size)) for size in (prompt, response, response)]
            self.groups.append(TokenizedGroup(ids[0], (ids[1], ids[2]), row=row))
        self.sizes = [number]
        self.weights = [1.0]
        self.names = ["random"]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> TokenizedGroup:
        return self.groups[index]

    def num_tokens(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Tokens of every group, or of some."""
        chosen = self.groups if indices is None else [self.groups[int(index)] for index in indices]
        return np.array([group.num_tokens for group in chosen], dtype=np.int64)

    def stream(self, seed: int, shuffle: bool = True) -> GroupStream:
        """The order of training."""
        return GroupStream(self.sizes, self.weights, seed=seed, shuffle=shuffle)

    def where(self, index: int) -> str:
        """A group, for messages."""
        return f"random group {index}"


def status_mib(name: str) -> float:
    """A value of this process's ``/proc/self/status``, MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def begin_anew() -> float:
    """Give back what was dropped, forget the largest size so far, and return the size now, MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return status_mib("VmRSS")


def main(job_file: str) -> None:
    """Train as the job says; the first process writes what was measured on all of them."""
    job: dict[str, Any] = json.loads(Path(job_file).read_text(encoding="utf-8"))
    launcher = "none" if job["strategy"] == "single" else "pytorch"
    ranks = ranks_from_environment(launcher)
    start_process_group(CpuDevice(), ranks, timeout_seconds=300)
    scratch = Path(job["scratch"])
    empty = begin_anew()
    torch.manual_seed(0)
    preset = dict(STRATEGIES_BY_NAME[job["strategy"]])
    strategy = preset.pop("type")(
        device=CpuDevice(),
        work_dir=str(scratch),
        env_kwargs={"launcher": launcher, "randomness": {"seed": 0}},
        experiment_name="scaling",
        **{**preset, **job["options"]},
    )
    strategy.prepare(
        RewardModel(job["backbone"], loss=RankingLoss()),
        optim_wrapper=ADAMW,
        dispatch_kwargs={"max_iters": job["warm_up"] + job["steps"]},
    )
    runner = SimpleNamespace(strategy=strategy, model=strategy.model, rank=strategy.rank, val_loop=None)
    pairs = Pairs(4 * job["groups_per_step"], job["prompt"], job["response"], job["backbone"]["vocab_size"])
    loader = StepLoader(
        pairs,  # type: ignore[arg-type]
        groups_per_step=job["groups_per_step"],
        token_budget=job["token_budget"],
        seed=0,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    loop = GroupTrainLoop(runner, loader, max_steps=job["warm_up"] + job["steps"])
    runner.model.train()
    losses, seconds = [], []
    for batches in loader.steps(0, loop.max_iters):
        if batches.step == job["warm_up"]:
            # The optimizer has its state by now; what building the model took is over.
            begin_anew()
        strategy.barrier()
        began = time.perf_counter()
        losses.append(loop.run_step(batches)["loss"])
        seconds.append(time.perf_counter() - began)
    peak = status_mib("VmHWM") - empty
    began = time.perf_counter()
    checkpoint = scratch / "iter_1.pth"
    strategy.save_checkpoint(str(checkpoint), extra_ckpt={"meta": {"step": 1}})
    strategy.barrier()
    saved = time.perf_counter() - began
    peaks = strategy.gather_objects(peak)
    if ranks.rank == 0:
        found = {
            "losses": losses,
            "step_seconds": seconds[job["warm_up"] :],
            "tokens": int(pairs.num_tokens(np.arange(1)).item()) * job["groups_per_step"],
            "checkpoint_seconds": saved,
            "checkpoint_mib": checkpoint.stat().st_size / 2**20,
            "peak_mib": peaks,
        }
        Path(job["result"]).write_text(json.dumps(found), encoding="utf-8")
    leave_process_group()


if __name__ == "__main__":
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    main(sys.argv[1])
