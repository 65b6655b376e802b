"""Scoring a file of conversations with xrlhf, as ``xrlhf score`` does it."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from job import read_job, write_result  # noqa: E402

from xrlhf.devices import find_device  # noqa: E402
from xrlhf.evaluation.score_file import score_file  # noqa: E402
from xrlhf.evaluation.scorer import Scorer  # noqa: E402


def main(job_file: str) -> None:
    """Score as the job says and write what was measured."""
    job = read_job(job_file)
    device = find_device(job["device"])
    device.set_device(0)
    scorer = Scorer.from_pretrained(job["model"], device=device, dtype=job["dtype"], token_budget=job["token_budget"])
    ready = time.perf_counter()
    out = Path(job["scratch"] + "_scores.jsonl")
    score_file(scorer, Path(job["data"]), out)
    done = time.perf_counter()
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    result = {
        "scores": [score for row in rows for score in row["scores"]],
        "seconds": done - ready,
        "start_seconds": ready - STARTED,
    }
    write_result(job, result)


if __name__ == "__main__":
    main(sys.argv[1])
