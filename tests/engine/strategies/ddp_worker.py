"""One of several processes that train with DDP on CPUs; test_ddp starts it and reads what it writes.

Arguments: rank, world size, port, folder. Writes ``rank_N.pt`` into the folder.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toy import ToyModel, pairs, run_of, tiny_reward_model, train, weights_of

from xrlhf.devices import CpuDevice
from xrlhf.engine.hooks import ThroughputHook
from xrlhf.engine.launch import Ranks, leave_process_group, start_process_group
from xrlhf.engine.strategies import DDPStrategy
from xrlhf.errors import CheckpointError, TrainingError
from xrlhf.structures import PackedBatch

ADAMW = {"optimizer": {"type": AdamW, "lr": 1e-2, "weight_decay": 0.1}, "max_grad_norm": 1.0}


class OneBadGroup(ToyModel):
    """The loss of group 5 is not a number."""

    def group_losses(self, batch: PackedBatch) -> Tensor:
        return super().group_losses(batch) + torch.where(batch.group_ids == 5, math.nan, 0.0)


class HalfUsed(ToyModel):
    """A second weight that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))


def strategy(folder: Path, name: str, **options: Any) -> DDPStrategy:
    return DDPStrategy(
        work_dir=str(folder / name),
        env_kwargs={"launcher": "pytorch", "randomness": {"seed": 0}},
        experiment_name=name,
        **{"device": CpuDevice(), **options},
    )


def message_of(call: Any, kind: type[Exception]) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    return "no error"


class RankDevice(CpuDevice):
    """A CPU of 1 or 3 GFLOP/s."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def matrix_rate(self, dtype: torch.dtype) -> float:
        return (1 + 2 * self.rank) * 1e9


def throughput(folder: Path, rank: int) -> tuple[dict[str, float], float]:
    """What the loop says of a step of 3 groups, one of which is computed twice, and the share of the rate it had."""
    run = run_of(
        tiny_reward_model(),
        pairs(3),
        folder,
        max_steps=1,
        groups_per_step=3,
        token_budget=1,
        strategy=strategy(folder, "throughput", device=RankDevice(rank)),
    )
    run.train_loop, shares = run.loop, []
    run.message_hub = SimpleNamespace(update_scalar=lambda name, value: shares.append(value))
    hook = ThroughputHook()
    hook.before_train(run)
    (values,) = train(run)
    hook.after_train_iter(run, 0, outputs=values)
    return values, shares[0]


def main() -> None:
    rank, world_size, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    os.environ["MASTER_PORT"] = port
    start_process_group(CpuDevice(), Ranks(rank, world_size, rank, "pytorch"), timeout_seconds=60)
    found: dict[str, Any] = {}

    found["logs"], found["weights"] = {}, {}
    for budget in (10_000, 40, 1):
        model = tiny_reward_model()
        run = run_of(
            model,
            pairs(),
            folder,
            max_steps=5,
            token_budget=budget,
            strategy=strategy(folder, f"budget_{budget}"),
            optim_wrapper=ADAMW,
        )
        found["logs"][budget] = train(run)
        found["weights"][budget] = weights_of(model)

    # 3 groups on 2 processes: one of them computes a group that does not count.
    model = ToyModel()
    run = run_of(
        model, pairs(3), folder, max_steps=1, groups_per_step=3, token_budget=1, strategy=strategy(folder, "filler")
    )
    found["filler"] = (train(run)[0], model.weight.item())

    found["throughput"] = throughput(folder, rank)

    run = run_of(
        HalfUsed(), pairs(), folder, max_steps=2, strategy=strategy(folder, "half", find_unused_parameters=True)
    )
    found["half_used"] = len(train(run))

    run = run_of(
        OneBadGroup(),
        pairs(8),
        folder,
        max_steps=1,
        token_budget=1,
        shuffle=False,
        strategy=strategy(folder, "bad"),
    )
    found["non_finite"] = message_of(lambda: train(run), TrainingError)
    found["weight_after_non_finite"] = run.strategy.module.weight.item()

    found["gathered"] = run.strategy.gather_objects({"rank": rank})
    run.strategy.barrier()

    run.strategy.param_schedulers = []
    good, bad = folder / "saved" / "iter_1.pth", folder / "blocked" / "iter_1.pth"
    run.strategy.save_checkpoint(str(good), extra_ckpt={"meta": {"step": 1}})
    found["is_saved"] = good.is_file()
    (folder / "blocked").touch()
    found["failed_save"] = message_of(lambda: run.strategy.save_checkpoint(str(bad)), CheckpointError)

    torch.save(found, folder / f"rank_{rank}.pt")
    leave_process_group()


if __name__ == "__main__":
    main()
