"""Reward training beside TRL's RewardTrainer: same model, data, optimizer and step size, in turn, repeated.

Both sides train a Llama with random weights on the same rows in the same order. First one step in float32, whose
losses must agree; then timed runs, alternating. Example:

    python tools/bench/reward_training.py --data harmless-base.jsonl.gz --tokenizer tokenizer.json

With --sweep, the same over prompts, answers and group sizes made to measure, to see how cost grows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measure import Outcome, benchmark_parser, machine_line, matrix_rate, run_side, spread, table
from peer_env import trl_python
from workload import LLAMA_25M, hh_conversations, random_conversations, write_model, write_rows

from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.map_fns import conversation_pair_map_fn
from xrlhf.structures import TokenizedGroup

SIDES = Path(__file__).resolve().parent / "sides"
WARMUP_STEPS = 2
VARIANTS: dict[str, dict[str, Any]] = {
    "checkpointing": {"checkpointing": True},
    "compiled": {"compiled": True},
    "small batches": {"token_budget": 1024},
}
"""Settings of ours that trade speed for memory or for a longer start."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = benchmark_parser(str(__doc__), "reward_training")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of a timed run")
    parser.add_argument("--pairs-per-step", type=int, default=8)
    parser.add_argument("--token-budget", type=int, default=8192)
    parser.add_argument("--peer-batches", type=int, nargs="+", default=[1, 8], help="TRL's batch sizes to try")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument(
        "--variants", nargs="*", choices=VARIANTS, default=["checkpointing"], help="other settings of xrlhf to run too"
    )
    parser.add_argument("--sweep", action="store_true", help="vary prompt length, answer length and group size instead")
    return parser.parse_args()


def contenders(options: argparse.Namespace, python: Path) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """Command and job of every contender, ours first."""
    ours = [sys.executable, str(SIDES / "xrlhf_reward.py")]
    peer = [str(python), str(SIDES / "trl_reward.py")]
    sides: dict[str, tuple[list[str], dict[str, Any]]] = {"xrlhf": (ours, {})}
    for name in options.variants:
        sides[f"xrlhf {name}"] = (ours, VARIANTS[name])
    for batch in options.peer_batches:
        sides[f"TRL batch {batch}"] = (peer, {"batch": batch, "trl_defaults": False})
    sides["TRL defaults"] = (peer, {"batch": options.pairs_per_step, "trl_defaults": True})
    return sides


def count_tokens(rows: list[dict[str, Any]], tokenizer: Any, max_length: int) -> tuple[int, int]:
    """Tokens that have to be computed, and tokens if every prompt is repeated."""
    encoded = GroupEncoder(tokenizer, max_length=max_length).encode([conversation_pair_map_fn(row) for row in rows])
    groups = [group for group in encoded if isinstance(group, TokenizedGroup)]
    repeated = sum(len(g.prompt_ids) * len(g.response_ids) + sum(map(len, g.response_ids)) for g in groups)
    return sum(group.num_tokens for group in groups), repeated


def pairs_per_second(outcome: Outcome, pairs_per_step: int) -> float:
    """Pairs a second over the steps after the warm-up."""
    steps = outcome.values["step_seconds"][WARMUP_STEPS - 1 :]
    return pairs_per_step * len(steps) / sum(steps)


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
        "pairs_per_step": options.pairs_per_step,
        "token_budget": options.token_budget,
        "lr": 1e-4,
        "device": options.device,
    }
    sides = contenders(options, python)

    first = {}
    for name, (command, extra) in sides.items():
        check = {**job, **extra, "dtype": "float32", "steps": 1}
        first[name] = run_side(command, check, options.out, f"check_{_slug(name)}", options.threads).values["losses"][0]
    print("first-step losses in float32: " + ", ".join(f"{name} {loss:.6f}" for name, loss in first.items()))
    if max(first.values()) - min(first.values()) > 1e-4:
        print("error: the first-step losses differ by more than 1e-4, so the sides do not do the same", file=sys.stderr)
        return 1

    outcomes: dict[str, list[Outcome]] = {name: [] for name in sides}
    rates = []
    for repeat in range(options.repeats):
        if options.device == "cpu":
            rates.append(matrix_rate(getattr(torch, options.dtype), options.threads))
        for name, (command, extra) in sides.items():
            timed = {**job, **extra, "dtype": options.dtype, "steps": options.steps}
            outcome = run_side(command, timed, options.out, f"{_slug(name)}_{repeat}", options.threads)
            outcomes[name].append(outcome)
            print(
                f"  run {repeat + 1}: {name}: {pairs_per_second(outcome, options.pairs_per_step):.2f} pairs/s",
                flush=True,
            )
    report(options, outcomes, rates, backbone, unique / num_pairs)
    return 0


def report(
    options: argparse.Namespace, outcomes: dict[str, list[Outcome]], rates: list[float], backbone: int, tokens: float
) -> None:
    """Print the table, and save it with every single figure and a plot."""
    speeds = {name: [pairs_per_second(o, options.pairs_per_step) for o in runs] for name, runs in outcomes.items()}
    rows = []
    for name, runs in outcomes.items():
        ratios = [a / b for a, b in zip(speeds["xrlhf"], speeds[name], strict=True)]
        memory = [o.memory_mib for o in runs]
        ours = [o.memory_mib for o in outcomes["xrlhf"]]
        rows.append(
            [
                name,
                spread(speeds[name]),
                spread(ratios),
                spread(memory),
                f"{statistics.median(ours) / statistics.median(memory):.2f}",
                spread([o.values["first_step_seconds"] for o in runs]),
            ]
        )
    header = ["side", "pairs/s", "xrlhf is faster by", "peak MiB", "xrlhf needs", "seconds to step 1"]
    text = table(header, rows) + "\n\n" + memory_line(outcomes)
    print("\n" + text)
    if rates:
        rate = statistics.median(rates)
        floor = rate / (6 * backbone * tokens)
        share = statistics.median(speeds["xrlhf"]) / floor
        line = (
            f"matrix products: {spread([r / 1e9 for r in rates])} GFLOP/s; floor {floor:.1f} pairs/s "
            f"(6 x {backbone / 1e6:.1f}M parameters x {tokens:.0f} tokens a pair); xrlhf reaches {share:.0%} of it"
        )
        print(line)
        text += "\n\n" + line
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    raw = {
        name: [{**o.values, "wall_seconds": o.wall_seconds, "peak_mib": o.peak_mib} for o in runs]
        for name, runs in outcomes.items()
    }
    (options.out / "raw.json").write_text(json.dumps(raw, indent=1), encoding="utf-8")
    plot(speeds, options.out / "pairs_per_second.png")
    print(f"raw figures and plot: {options.out}")


def memory_line(outcomes: dict[str, list[Outcome]]) -> str:
    """Peak memory of xrlhf under the settings that TRL's defaults have, activation checkpointing among them."""
    peaks = {name: statistics.median(o.memory_mib for o in runs) for name, runs in outcomes.items()}
    ours = "xrlhf checkpointing" if "xrlhf checkpointing" in peaks else "xrlhf"
    return f"peak memory: {ours} needs {peaks[ours] / peaks['TRL defaults']:.2f} of what TRL's defaults need"


def plot(speeds: dict[str, list[float]], path: Path) -> None:
    """Every run as a dot, medians as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for place, (_, values) in enumerate(speeds.items()):
        axes.bar(place, float(np.median(values)), width=0.6, alpha=0.5)
        axes.plot([place] * len(values), values, "k.", markersize=4)
    axes.set_xticks(range(len(speeds)), list(speeds))
    axes.set_ylabel("pairs a second")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)


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
        ours = {"data": str(files["groups"]), "pairs_per_step": num_groups, "map_fn": "ranked_map_fn"}
        theirs = {"data": str(files["pairs"]), "pairs_per_step": SWEEP_CONVERSATIONS // 2, "trl_defaults": False}
        sides = {
            "xrlhf": ([sys.executable, str(SIDES / "xrlhf_reward.py")], ours),
            "TRL": ([str(python), str(SIDES / "trl_reward.py")], {**theirs, "batch": SWEEP_CONVERSATIONS // 2}),
        }
        speeds = {}
        for name, (command, extra) in sides.items():
            side = f"sweep_{_slug(name)}_{number}"
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


def _slug(name: str) -> str:
    return name.lower().replace(" ", "_")


if __name__ == "__main__":
    sys.exit(main())
