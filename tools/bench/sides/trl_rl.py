"""TRL's GRPOTrainer on a benchmark's job. Runs in an environment of its own; knows nothing of xrlhf."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from answer_reward import share_of_even
from datasets import load_dataset
from job import read_job, write_result
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class LoopClock(TrainerCallback):
    """When training began, and when every optimizer step ended."""

    def __init__(self) -> None:
        self.began = 0.0
        self.ends: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def stored_answers(path: str) -> Any:
    """Answers from a file in the place of drawn ones."""
    answers = [ids for of_prompt in json.loads(Path(path).read_text(encoding="utf-8")) for ids in of_prompt]

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": trainer._tokenize_prompts(prompts)[0],
            "completion_ids": answers[: len(prompts)],
            "logprobs": [[0.0] * len(ids) for ids in answers[: len(prompts)]],
        }

    return rollout


def main(job_file: str) -> None:
    """Train as the job says and write what was measured."""
    job = read_job(job_file)
    samples = job["prompts"] * job["num_answers"]
    clock = LoopClock()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        reward_funcs=share_of_even,
        args=GRPOConfig(
            output_dir=job["scratch"],
            per_device_train_batch_size=job["batch"],
            gradient_accumulation_steps=samples // job["batch"],
            num_generations=job["num_answers"],
            max_completion_length=job["max_new_tokens"],
            max_steps=job["steps"],
            learning_rate=job["lr"],
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            weight_decay=0.0,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            bf16=job["dtype"] == "bfloat16",
            use_cpu=job["device"] == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            seed=0,
        ),
        train_dataset=load_dataset("json", data_files=job["data"], split="train", cache_dir=job["scratch"] + "_cache"),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[clock],
        rollout_func=stored_answers(job["answers"]) if job["answers"] else None,
    )
    trainer.train()
    steps = [row for row in trainer.state.log_history if "grad_norm" in row]
    write_result(
        job,
        {
            "seconds": clock.ends[-1] - clock.began,
            "grad_norms": [float(row["grad_norm"]) for row in steps],
            "rewards": [float(row["reward"]) for row in steps],
            "answer_length": [float(row["completions/mean_length"]) for row in steps],
        },
    )


if __name__ == "__main__":
    main(sys.argv[1])
