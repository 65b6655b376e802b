"""Tokenising preference data beside TRL's RewardTrainer: same rows, same tokenizer, same processes, in turn, repeated.

Our side is the building of a table from a JSON Lines file, reading, parsing and the start of the worker processes
included. TRL's side is the part of the trainer's constructor that prepares the data set; reading the file into the
data set before it is timed apart and not held against it. Both begin with an empty cache every time. The ids of the
first rows must be the same on both sides. Example:

    python tools/bench/tokenising.py --data harmless-base.jsonl.gz --tokenizer tokenizer.json
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measure import Outcome, benchmark_parser, machine_line, run_side, save_report, spread, table
from peer_env import trl_python
from workload import hh_conversations, write_model, write_rows

SIDES = Path(__file__).resolve().parent / "sides"
TINY_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = benchmark_parser(str(__doc__), "tokenising")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--compared", type=int, default=1000, help="rows whose ids must be the same on both sides")
    return parser.parse_args()


def many_conversations(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` rows like ``rows``, no two alike: in every copy each message gets one more word, at a random place.

    A message that both sides of a row begin with stays the same on both.
    """
    generator = random.Random(0)
    words = sorted({word for row in rows[:200] for message in row["chosen"] for word in message["content"].split(" ")})

    def changed(text: str) -> str:
        parts = text.split(" ")
        parts.insert(generator.randint(0, len(parts)), generator.choice(words))
        return " ".join(parts)

    made = list(rows[:count])
    while len(made) < count:
        row = rows[len(made) % len(rows)]
        new: dict[str, str] = {}
        for message in (*row["chosen"], *row["rejected"]):
            if message["content"] not in new:
                new[message["content"]] = changed(message["content"])
        made.append({side: [{**m, "content": new[m["content"]]} for m in row[side]] for side in ("chosen", "rejected")})
    generator.shuffle(made)
    return made


def check_same_ids(outcomes: dict[str, Outcome]) -> str | None:
    """What differs between the sides, or None."""
    ours, peer = (outcome.values for outcome in outcomes.values())
    for number, (mine, theirs) in enumerate(zip(ours["lengths"], peer["lengths"], strict=False)):
        if mine != theirs:
            return f"row {number} has {mine} tokens here and {theirs} there"
    for name in ("num_rows", "digest"):
        if ours[name] != peer[name]:
            return f"{name} is {ours[name]} here and {peer[name]} there"
    return None


def report(options: argparse.Namespace, outcomes: dict[str, list[Outcome]]) -> None:
    """Print the table, and save it with every single figure."""
    seconds = {name: [o.values["seconds"] for o in runs] for name, runs in outcomes.items()}
    rows = []
    for name, runs in outcomes.items():
        rows.append(
            [
                name,
                spread(seconds[name]),
                spread([options.rows / value for value in seconds[name]]),
                spread([theirs / ours for ours, theirs in zip(seconds["xrlhf"], seconds[name], strict=True)]),
                spread([o.values["cpu_seconds"] / options.rows * 1e3 for o in runs]),
                spread([o.values["load_seconds"] for o in runs]),
            ]
        )
    header = ["side", "seconds", "rows/s", "xrlhf is faster by", "CPU ms a row", "reading before, not counted, s"]
    text = table(header, rows)
    save_report(options.out, text, outcomes, without=["lengths"])


def main() -> int:
    """Run the benchmark and print its table."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    python = trl_python(options.out.parent / "peers")
    print(machine_line())
    model = options.out / "model"
    tokenizer, _ = write_model(model, options.tokenizer, TINY_LLAMA)
    base = hh_conversations(options.data, tokenizer, options.max_length)
    data = options.out / "pairs.jsonl"
    write_rows(data, many_conversations(base, options.rows))
    print(f"{options.rows:,} rows made of {len(base):,}, {data.stat().st_size / 2**20:.0f} MiB")
    job = {
        "model": str(model),
        "data": str(data),
        "max_length": options.max_length,
        "processes": options.processes,
        "compared": options.compared,
    }
    sides = {
        "xrlhf": [sys.executable, str(SIDES / "xrlhf_tokenising.py")],
        "TRL": [str(python), str(SIDES / "trl_tokenising.py")],
    }
    outcomes: dict[str, list[Outcome]] = {name: [] for name in sides}
    for repeat in range(options.repeats):
        for name, command in sides.items():
            outcomes[name].append(run_side(command, job, options.out, f"{name.lower()}_{repeat}", threads=1))
            values = outcomes[name][-1].values
            print(f"  run {repeat + 1}: {name}: {values['seconds']:.1f} s, {values['num_rows']} rows kept", flush=True)
        difference = check_same_ids({name: runs[-1] for name, runs in outcomes.items()})
        if difference:
            print(f"error: the sides do not do the same: {difference}", file=sys.stderr)
            return 1
    data.unlink()
    report(options, outcomes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
