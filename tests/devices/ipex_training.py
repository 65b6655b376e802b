"""Trains with Intel's extension and without, in an environment that has it; test_ipex starts it there.

Argument: a folder. Prints what it found as JSON on the last line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from toy import pairs, run_of, tiny_reward_model, train

from xrlhf.devices import Device, find_device
from xrlhf.engine.strategies import SingleStrategy

FOLDER = Path(sys.argv[1])
STEPS = 6


def prepared(device: Device, name: str, optimizer: type, precision: str, lora: float | None) -> Any:
    strategy = SingleStrategy(
        device=device,
        work_dir=str(FOLDER / name),
        env_kwargs={"launcher": "none", "randomness": {"seed": 0}},
        experiment_name=name,
    )
    settings = {"optimizer": {"type": optimizer, "lr": 1e-2}, "max_grad_norm": 1.0}
    model = tiny_reward_model(lora, precision=precision)
    run = run_of(model, pairs(), FOLDER / name, max_steps=STEPS, optim_wrapper=settings, strategy=strategy)
    strategy.param_schedulers = []
    return run


def main() -> None:
    found: dict[str, Any] = {"ipex": find_device("ipex").describe(), "cases": []}
    for optimizer in (AdamW, Adam, SGD):
        for precision, lora in (("bfloat16", None), ("bfloat16", 0.0), ("float32", None)):
            case: dict[str, Any] = {"optimizer": optimizer.__name__, "precision": precision, "lora": lora is not None}
            states = {}
            for device in ("ipex", "cpu"):
                name = f"{device}_{optimizer.__name__}_{precision}_{lora}"
                run = prepared(find_device(device), name, optimizer, precision, lora)
                case[device] = [log["loss"] for log in train(run)]
                path = FOLDER / name / f"iter_{STEPS}.pth"
                run.strategy.save_checkpoint(str(path), extra_ckpt={"meta": {"step": STEPS}})
                states[device] = torch.load(path, weights_only=True)["state_dict"]
                if device == "ipex":
                    case["held"] = sorted({str(p.dtype) for p in run.strategy.module.parameters()})
                    again = prepared(find_device(device), f"{name}_2", optimizer, precision, lora)
                    again.strategy.resume(str(path))
                    resumed = again.strategy.module.state_dict()
                    case["resumed"] = max(float((resumed[key] - states["ipex"][key]).abs().max()) for key in resumed
                                          if key in states["ipex"])  # fmt: skip
            case["names_differ"] = sorted(set(states["ipex"]) ^ set(states["cpu"]))
            case["saved"] = sorted({str(value.dtype) for value in states["ipex"].values()})
            found["cases"].append(case)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
