"""How the package calls Intel's extension on a CPU, recorded by a stand-in; test_contracts starts it.

Arguments: the precision, a folder. Prints what was recorded as JSON on the last line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from toy import pairs, run_of, tiny_reward_model, train

from xrlhf.devices import CpuDevice, Device, find_device
from xrlhf.engine import strategies
from xrlhf.engine.launch import Ranks, leave_process_group, start_process_group

ADAMW = {"optimizer": {"type": AdamW, "lr": 1e-2}, "max_grad_norm": 0.5}


def run(device: Device, folder: Path, name: str, precision: str) -> tuple[Any, list[dict[str, float]]]:
    kind = strategies.DDPStrategy
    strategy = kind(
        device=device,
        work_dir=str(folder / name),
        env_kwargs={"launcher": "pytorch", "randomness": {"seed": 0}},
        experiment_name=name,
    )
    model = tiny_reward_model(0.0, precision=precision)
    prepared = run_of(model, pairs(), folder / name, max_steps=4, optim_wrapper=ADAMW, strategy=strategy)
    return prepared, train(prepared)


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([value.norm() for value in tensors.values()]).norm())


def main() -> None:
    precision, folder = sys.argv[1], Path(sys.argv[2])
    device = find_device("ipex")
    start_process_group(device, Ranks(0, 1, 0, "pytorch"))
    import intel_extension_for_pytorch as ipex

    order: list[str] = []
    optimize, wrap = ipex.optimize, DistributedDataParallel.__init__
    ipex.optimize = lambda *args, **kwargs: (order.append("optimize"), optimize(*args, **kwargs))[1]

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        order.append("DDP")
        wrap(self, *args, **kwargs)

    DistributedDataParallel.__init__ = wrapped  # type: ignore[method-assign]
    prepared, logs = run(device, folder, "ipex", precision)
    strategy = prepared.strategy
    strategy.param_schedulers = []
    strategy.save_checkpoint(str(folder / "iter_4.pth"), extra_ckpt={"meta": {"step": 4}})
    model = strategy.module
    saved = torch.load(folder / "iter_4.pth", weights_only=True)["state_dict"]
    plain, plain_logs = run(CpuDevice(), folder, "cpu", precision)
    expected = plain.strategy.module.state_dict()
    leave_process_group()
    beginning = tiny_reward_model(0.0).state_dict()
    found = {
        "calls": [{**call, "dtype": str(call["dtype"])} for call in ipex.CALLS],
        "order": order,
        "description": device.describe(),
        "head": str(next(model.hf_model.score.parameters()).dtype),
        "held": sorted({str(p.dtype) for p in model.parameters()}),
        "saved": sorted({str(value.dtype) for value in saved.values()}),
        "difference": norm({name: saved[name] - expected[name] for name in saved}),
        "moved": norm({name: saved[name] - beginning[name] for name in saved}),
        "logs": logs,
        "plain_logs": plain_logs,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
