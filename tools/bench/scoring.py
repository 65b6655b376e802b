"""Scoring K answers to each prompt beside transformers' pipeline: same model, same rows, in turn, repeated.

The prompts are cut from conversations of hh-rlhf, all to the same length; the answers are answers found there. First
both sides score everything in float32, and the scores must agree; then timed runs, alternating, of reading the file,
rendering, tokenising and scoring, with the loading of the model left out. Example:

    python tools/bench/scoring.py --data harmless-base.jsonl.gz --tokenizer tokenizer.json
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measure import Outcome, benchmark_parser, machine_line, run_in_turn, run_side, save_report, spread, table
from peer_env import trl_python
from workload import LLAMA_25M, hh_conversations, write_model, write_rows

SIDES = Path(__file__).resolve().parent / "sides"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = benchmark_parser(str(__doc__), "scoring")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--responses", type=int, default=16, help="answers to every prompt")
    parser.add_argument("--peer-batch", type=int, default=16)
    parser.add_argument("--token-budget", type=int, default=16384)
    return parser.parse_args()


def best_of_rows(options: argparse.Namespace, tokenizer: Any) -> list[dict[str, Any]]:
    """Prompts of the asked length with the asked number of answers."""
    generator = random.Random(0)
    rows = hh_conversations(options.data, tokenizer, 1024)
    text = " ".join(message["content"] for row in rows for message in row["chosen"])
    answers = [row[side][-1] for row in rows for side in ("chosen", "rejected") if row[side][-1]["content"].strip()]
    ids = tokenizer(text[: options.prompts * options.prompt_tokens * 12], add_special_tokens=False)["input_ids"]
    made = []
    for number in range(options.prompts):
        start = number * options.prompt_tokens
        question = tokenizer.decode(ids[start : start + options.prompt_tokens])
        responses = [[answer] for answer in generator.sample(answers, options.responses)]
        made.append({"prompt": [{"role": "user", "content": question}], "responses": responses})
    return made


def main() -> int:
    """Run the benchmark and print its table."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    python = trl_python(options.out.parent / "peers")
    print(machine_line())
    model = options.out / "model"
    tokenizer, _ = write_model(model, options.tokenizer, LLAMA_25M)
    rows = best_of_rows(options, tokenizer)
    data = options.out / "answers.jsonl"
    write_rows(data, rows)
    job = {
        "model": str(model),
        "data": str(data),
        "device": options.device,
        "dtype": options.dtype,
        "batch": options.peer_batch,
        "token_budget": options.token_budget,
    }
    sides = {
        "xrlhf": [sys.executable, str(SIDES / "xrlhf_scoring.py")],
        f"pipeline, batch {options.peer_batch}": [str(python), str(SIDES / "pipeline_scoring.py")],
    }

    checked = [
        run_side(command, {**job, "dtype": "float32"}, options.out, f"check_{number}", options.threads).values["scores"]
        for number, command in enumerate(sides.values())
    ]
    difference = max(abs(ours - theirs) for ours, theirs in zip(*checked, strict=True))
    print(f"{len(checked[0])} scores in float32, largest difference {difference:.2g}")
    if difference > 1e-4:
        print("error: the scores differ by more than 1e-4, so the sides do not do the same", file=sys.stderr)
        return 1

    outcomes = run_in_turn(
        sides,
        options.repeats,
        lambda name, run: run_side(sides[name], job, options.out, run, options.threads),
        lambda outcome: f"{outcome.values['seconds']:.2f} s",
    )
    report(options, outcomes)
    return 0


def report(options: argparse.Namespace, outcomes: dict[str, list[Outcome]]) -> None:
    """Print the table, and save it with every single figure."""
    count = options.prompts * options.responses
    seconds = {name: [o.values["seconds"] for o in runs] for name, runs in outcomes.items()}
    memory = {name: [o.memory_mib for o in runs] for name, runs in outcomes.items()}
    rows = [
        [
            name,
            spread([count / value for value in seconds[name]]),
            spread([theirs / ours for ours, theirs in zip(seconds["xrlhf"], seconds[name], strict=True)]),
            spread(memory[name]),
            f"{statistics.median(memory['xrlhf']) / statistics.median(memory[name]):.2f}",
        ]
        for name in outcomes
    ]
    text = table(["side", "scores/s", "xrlhf is faster by", "peak MiB", "xrlhf needs"], rows)
    save_report(options.out, text, outcomes, without=["scores"])


if __name__ == "__main__":
    sys.exit(main())
