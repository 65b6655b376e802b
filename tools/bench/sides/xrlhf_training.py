"""xrlhf on a benchmark's job: a recipe of this benchmark through the ordinary command line."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import sys  # noqa: E402
from itertools import pairwise  # noqa: E402

from clock_hook import ClockHook  # noqa: E402
from job import read_job, write_result  # noqa: E402
from recipe_run import train_recipe  # noqa: E402


def main(job_file: str) -> None:
    """Train as the job says and write what was measured."""
    job = read_job(job_file)
    options = {
        "pretrained": job["model"],
        "data_path": job["data"],
        "max_length": job["max_length"],
        "groups_per_step": job["groups_per_step"],
        "token_budget": job["token_budget"],
        "max_steps": job["steps"],
        "lr": job["lr"],
        "precision": job["dtype"],
        "work_dir": job["scratch"],
        "cache_dir": job["scratch"] + "_cache",
        **job.get("recipe_options", {}),
    }
    train_recipe(job["recipe"], job["device"], options)
    ends = ClockHook.ends
    result = {
        "losses": [step["loss"] for step in ClockHook.steps],
        "step_seconds": [b - a for a, b in pairwise(ends)],
        "first_step_seconds": ends[0] - STARTED,
    }
    write_result(job, result)


if __name__ == "__main__":
    main(sys.argv[1])
