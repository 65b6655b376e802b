"""xrlhf on a benchmark's job: the recipe reward_bench.py through the ordinary command line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()

from mmengine.hooks import Hook  # noqa: E402

from xrlhf.cli.main import main as xrlhf  # noqa: E402
from xrlhf.registry import HOOKS  # noqa: E402

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "reward_bench.py"


@HOOKS.register_module()
class ClockHook(Hook):
    """When every optimizer step ended."""

    ends: list[float] = []  # noqa: RUF012 - read after the run that owns the hook is over
    losses: list[float] = []  # noqa: RUF012

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
        self.ends.append(time.perf_counter())
        self.losses.append(outputs["loss"])


def main(job_file: str) -> None:
    """Train as the job says and write what was measured."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    options = {
        "pretrained": job["model"],
        "data_path": job["data"],
        "max_length": job["max_length"],
        "groups_per_step": job["pairs_per_step"],
        "token_budget": job["token_budget"],
        "max_steps": job["steps"],
        "lr": job["lr"],
        "precision": job["dtype"],
        "work_dir": job["scratch"],
        "cache_dir": job["scratch"] + "_cache",
    }
    arguments = ["train", str(RECIPE), "--device", job["device"], "--cfg-options"]
    status = xrlhf([*arguments, *(f"{key}={value}" for key, value in options.items())])
    if status:
        raise SystemExit(status)
    ends = ClockHook.ends
    peak = None
    if job["device"] == "cuda":
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**20
    result = {
        "losses": ClockHook.losses,
        "step_seconds": [b - a for a, b in zip(ends[:-1], ends[1:], strict=True)],
        "first_step_seconds": ends[0] - STARTED,
        "peak_device_mib": peak,
    }
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
