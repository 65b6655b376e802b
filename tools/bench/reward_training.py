"""Reward training beside TRL's RewardTrainer: same model, data, optimizer and step size, in turn, repeated.

Both sides train a Llama with random weights on the same rows in the same order. First one step in float32, whose
losses must agree; then timed runs, alternating. Example:

    python tools/bench/reward_training.py --data harmless-base.jsonl.gz --tokenizer tokenizer.json

With --sweep, the same over prompts, answers and group sizes made to measure, to see how cost grows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measure import machine_line, run_side, table
from peer_env import trl_python
from training import Contender, TrainingBenchmark, slug, training_parser
from workload import LLAMA_25M, hh_conversations, random_conversations, write_model, write_rows

from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.map_fns import conversation_pair_map_fn
from xrlhf.structures import TokenizedGroup

SIDES = Path(__file__).resolve().parent / "sides"
VARIANTS: dict[str, dict[str, Any]] = {
    "checkpointing": {"recipe_options": {"checkpointing": True}},
    "compiled": {"recipe_options": {"compiled": True}},
    "small batches": {"token_budget": 1024},
}
"""Settings of ours that trade speed for memory or for a longer start."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = training_parser(str(__doc__), "reward_training")
    parser.add_argument("--pairs-per-step", type=int, default=8)
    parser.add_argument(
        "--variants", nargs="*", choices=VARIANTS, default=["checkpointing"], help="other settings of xrlhf to run too"
    )
    parser.add_argument("--sweep", action="store_true", help="vary prompt length, answer length and group size instead")
    return parser.parse_args()


def contenders(options: argparse.Namespace, python: Path) -> dict[str, Contender]:
    """Every contender, ours first."""
    ours = [sys.executable, str(SIDES / "xrlhf_training.py")]
    peer = [str(python), str(SIDES / "trl_reward.py")]
    sides = {"xrlhf": Contender(ours, {"recipe": "reward_bench"})}
    for name in options.variants:
        sides[f"xrlhf {name}"] = Contender(ours, {"recipe": "reward_bench", **VARIANTS[name]})
    for batch in options.peer_batches:
        sides[f"TRL batch {batch}"] = Contender(peer, {"batch": batch, "trl_defaults": False})
    sides["TRL defaults"] = Contender(peer, {"batch": options.pairs_per_step, "trl_defaults": True})
    return sides


def count_tokens(rows: list[dict[str, Any]], tokenizer: Any, max_length: int) -> tuple[int, int]:
    """Tokens that have to be computed, and tokens if every prompt is repeated."""
    encoded = GroupEncoder(tokenizer, max_length=max_length).encode([conversation_pair_map_fn(row) for row in rows])
    groups = [group for group in encoded if isinstance(group, TokenizedGroup)]
    repeated = sum(len(g.prompt_ids) * len(g.response_ids) + sum(map(len, g.response_ids)) for g in groups)
    return sum(group.num_tokens for group in groups), repeated


def main() -> int:
    """Run the benchmark and print its table."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    python = trl_python(options.out.parent / "peers")
    print(machine_line())
    if options.sweep:
        return sweep(options, python)
    model = options.out / "model"
    tokenizer, backbone = write_model(model, options.tokenizer, LLAMA_25M)
    num_pairs = options.steps * options.pairs_per_step
    rows = hh_conversations(options.data, tokenizer, options.max_length)[:num_pairs]
    if len(rows) < num_pairs:
        print(f"error: {options.data} has {len(rows)} usable pairs, {num_pairs} are needed", file=sys.stderr)
        return 2
    data = options.out / "pairs.jsonl"
    write_rows(data, rows)
    unique, repeated = count_tokens(rows, tokenizer, options.max_length)
    print(f"{num_pairs} pairs, {unique:,} tokens to compute, {repeated:,} with every prompt repeated")
    job = {
        "model": str(model),
        "data": str(data),
        "max_length": options.max_length,
        "groups_per_step": options.pairs_per_step,
        "token_budget": options.token_budget,
        "lr": 1e-4,
        "device": options.device,
    }
    return TrainingBenchmark(
        options=options,
        contenders=contenders(options, python),
        job=job,
        unit="pairs",
        units_per_step=options.pairs_per_step,
        flops_per_unit=6 * backbone * unique / num_pairs,
        baseline=("TRL defaults", "xrlhf checkpointing"),
    ).run()


SWEEP = [
    *[("prompt", prompt, 64, 2) for prompt in (32, 128, 512)],
    *[("answer", 128, answer, 2) for answer in (16, 64, 256)],
    *[("group", 256, 64, size) for size in (2, 4, 8, 16)],
]
"""What varies, tokens of a prompt, tokens of an answer, answers to a prompt."""
SWEEP_CONVERSATIONS = 16
SWEEP_STEPS = 4


def sweep(options: argparse.Namespace, python: Path) -> int:
    """Conversations a second of both sides over made-up groups; a peer that knows pairs gets a group as pairs."""
    model = options.out / "model"
    tokenizer, _ = write_model(model, options.tokenizer, LLAMA_25M)
    rows = []
    for number, (varied, prompt, answer, size) in enumerate(SWEEP):
        num_groups = SWEEP_CONVERSATIONS // size
        groups = random_conversations(num_groups * SWEEP_STEPS, size, prompt, answer, tokenizer)
        pairs = [
            {"chosen": group["prompt"] + group["responses"][k], "rejected": group["prompt"] + group["responses"][k + 1]}
            for group in groups
            for k in range(0, size, 2)
        ]
        files = {"groups": options.out / f"sweep_{number}_groups.jsonl", "pairs": options.out / f"sweep_{number}.jsonl"}
        write_rows(files["groups"], groups)
        write_rows(files["pairs"], pairs)
        job = {
            "model": str(model),
            "max_length": 4096,
            "token_budget": options.token_budget,
            "lr": 1e-4,
            "device": options.device,
            "dtype": options.dtype,
            "steps": SWEEP_STEPS,
        }
        ours = {
            "data": str(files["groups"]),
            "groups_per_step": num_groups,
            "recipe": "reward_bench",
            "recipe_options": {"map_fn": "ranked_map_fn"},
        }
        theirs = {"data": str(files["pairs"]), "groups_per_step": SWEEP_CONVERSATIONS // 2, "trl_defaults": False}
        sides = {
            "xrlhf": ([sys.executable, str(SIDES / "xrlhf_training.py")], ours),
            "TRL": ([str(python), str(SIDES / "trl_reward.py")], {**theirs, "batch": SWEEP_CONVERSATIONS // 2}),
        }
        speeds = {}
        for name, (command, extra) in sides.items():
            side = f"sweep_{slug(name)}_{number}"
            outcome = run_side(command, {**job, **extra}, options.out, side, options.threads)
            speeds[name] = SWEEP_CONVERSATIONS / statistics.median(outcome.values["step_seconds"])
        ratio = speeds["xrlhf"] / speeds["TRL"]
        figures = [f"{value:.3g}" for value in (*speeds.values(), ratio)]
        rows.append([varied, str(prompt), str(answer), str(size), *figures])
        print("  " + ", ".join(rows[-1]), flush=True)
    header = ["varied", "prompt", "answer", "group", "xrlhf, conversations/s", "TRL batch 8", "ratio"]
    text = table(header, rows)
    print("\n" + text)
    (options.out / "sweep.md").write_text(text + "\n", encoding="utf-8")
    plot_sweep(rows, options.out / "sweep.png")
    return 0


def plot_sweep(rows: list[list[str]], path: Path) -> None:
    """One panel for what is varied, both sides in each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = {"prompt": ("tokens of the prompt", 1), "answer": ("tokens of an answer", 2), "group": ("answers", 3)}
    for axes, (varied, (label, column)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        chosen = [row for row in rows if row[0] == varied]
        for name, place in (("xrlhf", 4), ("TRL batch 8", 5)):
            axes.plot([int(row[column]) for row in chosen], [float(row[place]) for row in chosen], "o-", label=name)
        axes.set(xlabel=label, xscale="log", ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("conversations a second")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
