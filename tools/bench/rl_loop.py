"""The whole loop of GRPO beside TRL's: drawing, rewarding, learning; same model, prompts, reward and updates, in turn.

Both sides train a Llama with random weights, which hardly ever ends an answer by itself, so that all answers have the
same length. First both take one step in float32 on the same stored answers, and the norms of their gradients must
agree; then timed runs, alternating, each of ``--rollouts`` rollouts with one optimizer step on each. The clock starts
where training begins, after models are loaded, and stops with the last step. Example:

    python tools/bench/rl_loop.py --data harmless-base.jsonl.gz --tokenizer tokenizer.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measure import Outcome, benchmark_parser, machine_line, run_in_turn, run_side, save_report, spread, table
from peer_env import trl_python
from workload import LLAMA_25M, hh_conversations, write_policy, write_rows

SIDES = Path(__file__).resolve().parent / "sides"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = benchmark_parser(str(__doc__), "rl_loop")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rollouts", type=int, default=1, help="rollouts of a timed run")
    parser.add_argument("--prompts", type=int, default=128, help="prompts of a rollout")
    parser.add_argument("--answers", type=int, default=4, help="answers to each prompt")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=512, help="most tokens of a prompt")
    parser.add_argument("--token-budget", type=int, default=8192)
    parser.add_argument("--peer-batches", type=int, nargs="+", default=[8, 32], help="TRL's batch sizes to try")
    return parser.parse_args()


def prompts_of(options: argparse.Namespace, tokenizer: Any) -> list[dict[str, Any]]:
    """Conversations of the data up to where the last answer begins."""
    rows = hh_conversations(options.data, tokenizer, options.max_length)
    return [{"prompt": row["chosen"][:-1]} for row in rows[: options.prompts * options.rollouts]]


def stored_answers(options: argparse.Namespace, vocabulary: int) -> list[list[list[int]]]:
    """Random answers to the prompts of one rollout, of many lengths."""
    generator = random.Random(0)
    return [
        [
            [generator.randrange(3, vocabulary) for _ in range(generator.randint(1, options.max_new_tokens))]
            for _ in range(options.answers)
        ]
        for _ in range(options.prompts)
    ]


def main() -> int:
    """Run the benchmark and print its table."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    python = trl_python(options.out.parent / "peers")
    print(machine_line())
    model = options.out / "model"
    tokenizer, _ = write_policy(model, options.tokenizer, LLAMA_25M, seed=0)
    rows = prompts_of(options, tokenizer)
    if len(rows) < options.prompts * options.rollouts:
        print(f"error: {options.data} has {len(rows)} usable prompts", file=sys.stderr)
        return 2
    data, answers = options.out / "prompts.jsonl", options.out / "answers.json"
    write_rows(data, rows)
    answers.write_text(json.dumps(stored_answers(options, len(tokenizer))), encoding="utf-8")
    texts: list[Any] = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in rows
    ]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    print(f"{len(rows)} prompts of {statistics.mean(lengths):.0f} tokens on average, {max(lengths)} at most")
    job = {
        "model": str(model),
        "data": str(data),
        "max_length": options.max_length,
        "max_new_tokens": options.max_new_tokens,
        "prompts": options.prompts,
        "num_answers": options.answers,
        "token_budget": options.token_budget,
        "lr": 1e-4,
        "device": options.device,
        "steps": options.rollouts,
        "dtype": options.dtype,
        "answers": None,
    }
    sides = {"xrlhf": ([sys.executable, str(SIDES / "xrlhf_rl.py")], job)}
    for batch in options.peer_batches:
        sides[f"TRL batch {batch}"] = ([str(python), str(SIDES / "trl_rl.py")], {**job, "batch": batch})

    if not gradients_agree(options, sides, {"steps": 1, "dtype": "float32", "answers": str(answers)}):
        return 1
    outcomes = run_in_turn(
        sides,
        options.repeats,
        lambda name, run: run_side(*sides[name], options.out, run, options.threads),
        lambda outcome: f"{outcome.values['seconds']:.1f} s",
    )
    report(options, outcomes)
    return 0


def gradients_agree(options: argparse.Namespace, sides: dict[str, Any], check: dict[str, Any]) -> bool:
    """Whether a step on the same answers has the same gradient's norm and mean reward everywhere."""
    found = {}
    for number, (name, (command, settings)) in enumerate(sides.items()):
        values = run_side(command, {**settings, **check}, options.out, f"check_{number}", options.threads).values
        found[name] = (values["grad_norms"][0], values["rewards"][0])
        norm, reward = found[name]
        print(f"  one step on stored answers: {name}: gradient norm {norm:.6f}, reward {reward:.6f}", flush=True)
    (norm, reward), *others = found.values()
    if all(abs(n / norm - 1) <= 1e-3 and abs(r - reward) <= 1e-5 for n, r in others):
        return True
    print("error: the gradients differ by more than 0.1 %, so the sides do not do the same", file=sys.stderr)
    return False


def report(options: argparse.Namespace, outcomes: dict[str, list[Outcome]]) -> None:
    """Print the table, and save it with every single figure."""
    count = options.rollouts * options.prompts * options.answers
    seconds = {name: [o.values["seconds"] for o in runs] for name, runs in outcomes.items()}
    memory = {name: [o.memory_mib for o in runs] for name, runs in outcomes.items()}
    rows = [
        [
            name,
            spread([count / value for value in seconds[name]]),
            spread([theirs / ours for ours, theirs in zip(seconds["xrlhf"], seconds[name], strict=True)]),
            spread(memory[name]),
            f"{statistics.median(memory['xrlhf']) / statistics.median(memory[name]):.2f}",
            spread([length for o in runs for length in o.values["answer_length"]]),
        ]
        for name, runs in outcomes.items()
    ]
    header = ["side", "samples/s", "xrlhf is faster by", "peak MiB", "xrlhf needs", "tokens of an answer"]
    text = table(header, rows)
    parts = [o.values["last_step"] for o in outcomes["xrlhf"]]
    names = [name for name in parts[0] if name.startswith("seconds_")]
    text += "\n\nxrlhf, of a rollout: " + ", ".join(f"{n} {spread([of[n] for of in parts])}" for n in names)
    save_report(options.out, text, outcomes)


if __name__ == "__main__":
    sys.exit(main())
