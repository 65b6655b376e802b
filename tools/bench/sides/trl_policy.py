"""TRL's SFTTrainer or DPOTrainer on a benchmark's job. Runs in an environment of its own; knows nothing of xrlhf."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import sys  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from datasets import load_dataset  # noqa: E402
from job import read_job, write_result  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # noqa: E402
from trl_clock import Clock, training_arguments, training_result  # noqa: E402


class SFTInOrder(SFTTrainer):
    """Rows in file order, so that both sides see the same steps."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class DPOInOrder(DPOTrainer):
    """Rows in file order."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def main(job_file: str) -> None:
    """Train as the job says and write what was measured."""
    job = read_job(job_file)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    is_dpo = job["stage"] == "dpo"
    options = {"beta": job["beta"]} if is_dpo else {}
    config = (DPOConfig if is_dpo else SFTConfig)(**training_arguments(job), **options)
    clock = Clock()
    common = {
        "model": model,
        "args": config,
        "train_dataset": load_dataset(
            "json", data_files=job["data"], split="train", cache_dir=job["scratch"] + "_cache"
        ),
        "processing_class": AutoTokenizer.from_pretrained(job["model"]),
        "callbacks": [clock],
    }
    if is_dpo:
        reference = AutoModelForCausalLM.from_pretrained(job["reference"], dtype=torch.float32)
        trainer: Any = DPOInOrder(ref_model=reference, **common)
    else:
        trainer = SFTInOrder(**common)
    trainer.train()
    write_result(job, training_result(trainer, clock, STARTED))


if __name__ == "__main__":
    main(sys.argv[1])
