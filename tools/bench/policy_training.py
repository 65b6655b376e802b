"""Supervised fine-tuning or DPO beside TRL: same model, data, optimizer and step size, in turn, repeated.

Both sides train a Llama with random weights on the same rows in the same order; for DPO the reference is another
random model, so that the first loss is not ln 2 whatever a program does. First one step in float32, whose losses must
agree; then timed runs, alternating. Example:

    python tools/bench/policy_training.py dpo --data harmless-base.jsonl.gz --tokenizer tokenizer.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measure import machine_line
from peer_env import trl_python
from training import Contender, TrainingBenchmark, training_parser
from workload import LLAMA_25M, hh_conversations, write_policy, write_rows

from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.map_fns import completion_map_fn, conversation_pair_map_fn
from xrlhf.structures import TokenizedGroup

SIDES = Path(__file__).resolve().parent / "sides"
BETA = 0.1
LOSSES: dict[str, dict[str, Any]] = {"sft": {"type": "LanguageModelLoss"}, "dpo": {"type": "DPOLoss", "beta": BETA}}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = training_parser(str(__doc__), "policy_training")
    parser.add_argument("stage", choices=LOSSES)
    parser.add_argument("--groups-per-step", type=int, default=8, help="pairs, or conversations")
    return parser.parse_args()


def rows_of(stage: str, conversations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that both sides read: an answer to imitate, or two to choose from."""
    if stage == "dpo":
        return conversations
    return [{"prompt": row["chosen"][:-1], "completion": row["chosen"][-1:]} for row in conversations]


def contenders(options: argparse.Namespace, python: Path, reference: Path) -> dict[str, Contender]:
    """Every contender, ours first."""
    ours = [sys.executable, str(SIDES / "xrlhf_training.py")]
    peer = [str(python), str(SIDES / "trl_policy.py")]
    is_dpo = options.stage == "dpo"
    recipe: dict[str, Any] = {
        "loss": LOSSES[options.stage],
        "map_fn": "conversation_pair_map_fn" if is_dpo else "completion_map_fn",
        **({"reference": str(reference)} if is_dpo else {}),
    }
    theirs = {"stage": options.stage, "reference": str(reference), "beta": BETA}
    sides = {
        "xrlhf": Contender(ours, {"recipe": "policy_bench", "recipe_options": recipe}),
        "xrlhf checkpointing": Contender(
            ours, {"recipe": "policy_bench", "recipe_options": {**recipe, "checkpointing": True}}
        ),
    }
    for batch in options.peer_batches:
        sides[f"TRL batch {batch}"] = Contender(peer, {**theirs, "batch": batch, "trl_defaults": False})
    sides["TRL defaults"] = Contender(peer, {**theirs, "batch": options.groups_per_step, "trl_defaults": True})
    return sides


def main() -> int:
    """Run the benchmark and print its table."""
    options = parse()
    options.out = options.out / options.stage
    options.out.mkdir(parents=True, exist_ok=True)
    python = trl_python(options.out.parent.parent / "peers")
    print(machine_line())
    model, reference = options.out / "model", options.out / "reference"
    tokenizer, weights = write_policy(model, options.tokenizer, LLAMA_25M, seed=0)
    write_policy(reference, options.tokenizer, LLAMA_25M, seed=1)
    number = options.steps * options.groups_per_step
    rows = rows_of(options.stage, hh_conversations(options.data, tokenizer, options.max_length)[:number])
    if len(rows) < number:
        print(f"error: {options.data} has {len(rows)} usable rows, {number} are needed", file=sys.stderr)
        return 2
    data = options.out / "rows.jsonl"
    write_rows(data, rows)
    map_fn = conversation_pair_map_fn if options.stage == "dpo" else completion_map_fn
    encoded = GroupEncoder(tokenizer, max_length=options.max_length).encode([map_fn(row) for row in rows])
    tokens = sum(group.num_tokens for group in encoded if isinstance(group, TokenizedGroup))
    print(f"{number} rows, {tokens:,} tokens to compute")
    # The reference runs forward only: a third of the policy's products.
    products = 8 if options.stage == "dpo" else 6
    return TrainingBenchmark(
        options=options,
        contenders=contenders(options, python, reference),
        job={
            "model": str(model),
            "data": str(data),
            "max_length": options.max_length,
            "groups_per_step": options.groups_per_step,
            "token_budget": options.token_budget,
            "lr": 1e-4,
            "device": options.device,
        },
        unit="pairs" if options.stage == "dpo" else "conversations",
        units_per_step=options.groups_per_step,
        flops_per_unit=products * weights * tokens / number,
        baseline=("TRL defaults", "xrlhf checkpointing"),
    ).run()


if __name__ == "__main__":
    sys.exit(main())
