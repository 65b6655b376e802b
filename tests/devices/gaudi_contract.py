"""What the package asks of Intel's libraries on a Gaudi, recorded by stand-ins; test_contracts starts it.

Arguments: the scenario, a folder. Prints what was recorded as JSON on the last line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[2])
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))


def command() -> list[Any]:
    """The command line: the environment has to be complete before torch is imported."""
    assert "torch" not in sys.modules
    from xrlhf.cli.main import main

    status = main(["env"])
    import habana_frameworks

    return [status, *habana_frameworks.CALLS]


def late() -> list[Any]:
    """As a library, torch already imported by whoever uses it: the mode is what Intel's package has chosen."""
    import os

    import torch  # noqa: F401

    from xrlhf.devices import HpuDevice

    return [HpuDevice.obstacle(), os.environ.get("PT_HPU_LAZY_MODE"), HpuDevice().is_lazy]


def group(launcher: str) -> list[Any]:
    """Joining the other processes."""
    import habana_frameworks
    import torch.distributed as dist

    from xrlhf.devices import HpuDevice
    from xrlhf.engine.launch import Ranks, start_process_group

    dist.init_process_group = lambda backend, **kwargs: habana_frameworks.note(  # type: ignore[assignment]
        "init_process_group", backend, kwargs["rank"], kwargs["world_size"]
    )
    device = HpuDevice()
    obstacle = device.obstacle()
    habana_frameworks.CALLS.clear()
    start_process_group(device, Ranks(rank=5, world_size=8, local_rank=1, launcher=launcher))
    calls = list(habana_frameworks.CALLS)
    return [obstacle, *calls, device.ddp_kwargs(), str(device.torch_device), device.process_group_backend]


def train(max_grad_norm: float | None = 1.0, *, policy: bool = False) -> dict[str, Any]:
    """Two steps of the real loop; tensors stay on the CPU, since a stand-in computes nothing."""
    import habana_frameworks
    import torch
    from torch.optim import AdamW
    from toy import answers, pairs, run_of, tiny_policy, tiny_reward_model

    from xrlhf.devices import HpuDevice
    from xrlhf.engine.strategies import SingleStrategy
    from xrlhf.losses.policy import DPOLoss

    class OnCpu(HpuDevice):
        @property
        def torch_device(self) -> torch.device:
            return torch.device("cpu")

    device = OnCpu()
    assert device.obstacle() is None
    device.set_device(0)
    note = habana_frameworks.note
    strategy = SingleStrategy(
        device=device, work_dir=str(FOLDER), env_kwargs={"launcher": "none", "randomness": {"seed": 0}}
    )
    options = {"static_shapes": device.static_shapes}
    model: Any = tiny_policy(DPOLoss(), **options) if policy else tiny_reward_model(**options)
    shapes, targets = set(), set()
    for part in model.transformers_models():
        part.model.register_forward_pre_hook(
            lambda module, args, kwargs: shapes.add(tuple(kwargs["input_ids"].shape)), with_kwargs=True
        )
        if policy:
            part.lm_head.register_forward_pre_hook(lambda module, args: targets.add(len(args[0])))
    run = run_of(
        model,
        answers() if policy else pairs(),
        FOLDER,
        max_steps=2,
        token_budget=80,
        optim_wrapper={"optimizer": {"type": AdamW, "lr": 1e-3}, "max_grad_norm": max_grad_norm},
        strategy=strategy,
    )
    backward = strategy.backward
    strategy.backward = lambda loss: (backward(loss), note("backward"))[0]  # type: ignore[method-assign]
    run.model.train()
    steps, micro_batches = [], []
    for batches in run.loop.dataloader.steps(0, 2):
        habana_frameworks.CALLS.clear()
        log = run.loop.run_step(batches)
        steps.append([call[0] for call in habana_frameworks.CALLS])
        micro_batches.append(len(batches.batches))
    return {
        "steps": steps,
        "micro_batches": micro_batches,
        "shapes": sorted(shapes),
        "targets": sorted(targets),
        "layout": model.layout,
        "optimizer": type(strategy.optim_wrapper.optimizer).__name__,
        "memory": log["memory"],
    }


SCENARIOS: dict[str, Any] = {
    "command": command,
    "late": late,
    "slurm": lambda: group("slurm"),
    "mpi": lambda: group("mpi"),
    "pytorch": lambda: group("pytorch"),
    "train": train,
    "train without a limit": lambda: train(None),
    "train a policy": lambda: train(policy=True),
}

if __name__ == "__main__":
    print(json.dumps(SCENARIOS[sys.argv[1]]()))
