"""TRL's own preparation of preference data on a benchmark's job. Knows nothing of xrlhf."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from job import cpu_seconds, read_job, write_result
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer


class TimedTrainer(RewardTrainer):
    """Notes how long the constructor takes to prepare the training data, and what CPU time that costs."""

    def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
        began, cpu_before = time.perf_counter(), cpu_seconds()
        prepared = super()._prepare_dataset(*args, **kwargs)
        self.prepare_seconds = time.perf_counter() - began
        self.prepare_cpu_seconds = cpu_seconds() - cpu_before
        return prepared


def main(job_file: str) -> None:
    """Prepare the data as the job says and write what was measured."""
    job = read_job(job_file)
    shutil.rmtree(job["scratch"], ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], dtype=torch.float32)
    began = time.perf_counter()
    rows = load_dataset("json", data_files=job["data"], split="train", cache_dir=job["scratch"])
    load_seconds = time.perf_counter() - began
    trainer = TimedTrainer(
        model=model,
        args=RewardConfig(
            output_dir=job["scratch"] + "/output",
            max_length=job["max_length"],
            dataset_num_proc=job["processes"],
            use_cpu=True,
            bf16=False,
            report_to="none",
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    digest = hashlib.blake2b(digest_size=16)
    lengths = []
    for row in islice(trainer.train_dataset, job["compared"]):
        sides = [np.asarray(row[name], dtype=np.int32) for name in ("chosen_ids", "rejected_ids")]
        lengths.append([len(ids) for ids in sides])
        for ids in sides:
            digest.update(ids.tobytes())
    result = {
        "seconds": trainer.prepare_seconds,
        "cpu_seconds": trainer.prepare_cpu_seconds,
        "load_seconds": load_seconds,
        "num_rows": len(trainer.train_dataset),
        "lengths": lengths,
        "digest": digest.hexdigest(),
    }
    shutil.rmtree(job["scratch"])
    write_result(job, result)


if __name__ == "__main__":
    main(sys.argv[1])
