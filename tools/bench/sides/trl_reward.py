"""TRL's RewardTrainer on a benchmark's job. Runs in an environment of its own; knows nothing of xrlhf."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import sys  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from datasets import load_dataset  # noqa: E402
from job import read_job, write_result  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402
from trl import RewardConfig, RewardTrainer  # noqa: E402
from trl_clock import Clock, training_arguments, training_result  # noqa: E402


class InOrder(RewardTrainer):
    """Rows in file order, so that both sides see the same steps."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def main(job_file: str) -> None:
    """Train as the job says and write what was measured."""
    job = read_job(job_file)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], dtype=torch.float32)
    clock = Clock()
    trainer = InOrder(
        model=model,
        args=RewardConfig(**training_arguments(job), dataset_num_proc=job.get("num_proc")),
        train_dataset=load_dataset("json", data_files=job["data"], split="train", cache_dir=job["scratch"] + "_cache"),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    write_result(job, training_result(trainer, clock, STARTED))


if __name__ == "__main__":
    main(sys.argv[1])
