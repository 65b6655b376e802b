"""xrlhf's GRPO on a benchmark's job, through the ordinary command line."""

from __future__ import annotations

import sys

from clock_hook import ClockHook
from job import read_job, write_result
from recipe_run import train_recipe


def main(job_file: str) -> None:
    """Train as the job says and write what was measured."""
    job = read_job(job_file)
    options = {
        "pretrained": job["model"],
        "data_path": job["data"],
        "max_length": job["max_length"],
        "max_new_tokens": job["max_new_tokens"],
        "prompts_per_rollout": job["prompts"],
        "num_answers": job["num_answers"],
        "token_budget": job["token_budget"],
        "max_steps": job["steps"],
        "lr": job["lr"],
        "precision": job["dtype"],
        "work_dir": job["scratch"],
    }
    if job["answers"]:
        options["rollouts"] = {"type": "StoredAnswers", "path": job["answers"]}
        import stored_answers  # noqa: F401  (registers what the option names)
    train_recipe("rl_bench", job["device"], options)
    write_result(
        job,
        {
            "seconds": ClockHook.ends[-1] - ClockHook.began,
            "grad_norms": [step["grad_norm"] for step in ClockHook.steps],
            "rewards": [step["reward"] for step in ClockHook.steps],
            "answer_length": [step["answer_length"] for step in ClockHook.steps],
            "last_step": ClockHook.steps[-1],
        },
    )


if __name__ == "__main__":
    main(sys.argv[1])
