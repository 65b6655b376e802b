"""Scoring through the text-classification pipeline of transformers, in the peer's environment, without xrlhf."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from job import read_job, write_result  # noqa: E402
from transformers import AutoTokenizer, pipeline  # noqa: E402


def main(job_file: str) -> None:
    """Score as the job says and write what was measured."""
    job = read_job(job_file)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    scorer = pipeline(
        "text-classification",
        model=job["model"],
        tokenizer=tokenizer,
        device=job["device"],
        model_kwargs={"dtype": getattr(torch, job["dtype"])},
    )
    ready = time.perf_counter()
    rows = [json.loads(line) for line in Path(job["data"]).read_text(encoding="utf-8").splitlines()]
    texts = [
        str(tokenizer.apply_chat_template([*row["prompt"], *response], tokenize=False))
        for row in rows
        for response in row["responses"]
    ]
    outputs: list = scorer(texts, top_k=None, function_to_apply="none", batch_size=job["batch"])
    done = time.perf_counter()
    result = {
        "scores": [output[0]["score"] for output in outputs],
        "seconds": done - ready,
        "start_seconds": ready - STARTED,
    }
    write_result(job, result)


if __name__ == "__main__":
    main(sys.argv[1])
