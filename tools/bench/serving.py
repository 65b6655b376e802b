"""Best-of-K scoring over HTTP by many clients at once, beside OpenRLHF's design of a reward server and offline scoring.

Four sides score the same rows with the same model, in turn, repeated: ``xrlhf score`` on the file; ``xrlhf serve``
asked for a prompt and its K answers at ``/v1/rewards``; ``xrlhf serve`` asked for K rendered texts at ``/get_reward``;
and a stand-in of OpenRLHF's ``serve_rm`` asked the same (``sides/serve_rm_stand_in.py`` says what it has of it and what
not). Every request holds the K answers to one prompt, and every client sends its next one as soon as it has an answer.
Clients and server share the machine. All sides must give the same scores, to 1e-4: in every timed run of float32, and
before those of bfloat16. Loading the model is left out, and one request to warm up. Example:

    python tools/bench/serving.py --data harmless-base.jsonl.gz --tokenizer tokenizer.json
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measure import Outcome, benchmark_parser, machine_line, run_in_turn, run_side, save_report, spread, table
from scoring import best_of_rows
from workload import LLAMA_3M, LLAMA_25M, write_model, write_rows

SIDES = Path(__file__).resolve().parent / "sides"
OFFLINE = "xrlhf score"
SERVED = "xrlhf serve, /v1/rewards"
SAME_BODIES = "xrlhf serve, /get_reward"
PEER = "serve_rm's design, /get_reward"
NAMES = (OFFLINE, SERVED, SAME_BODIES, PEER)
MODELS = {"3m": LLAMA_3M, "25m": LLAMA_25M}
TOLERANCE = 1e-4


def parse() -> argparse.Namespace:
    """The command line."""
    parser = benchmark_parser(str(__doc__), "serving")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", default="3m", choices=list(MODELS), help="its parameters beside the embeddings")
    parser.add_argument("--prompts", type=int, default=64, help="requests of a run")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--responses", type=int, default=16, help="answers to every prompt")
    parser.add_argument("--clients", type=int, default=64, help="requests under way at once")
    parser.add_argument("--token-budget", type=int, default=16384)
    return parser.parse_args()


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_bodies(folder: Path, rows: list[dict[str, Any]], tokenizer: Any) -> dict[str, str]:
    """What the servers are asked, one request a line; returns the file of each side that is a server."""
    ours = [{"inputs": [{"prompt": row["prompt"], "responses": row["responses"]}]} for row in rows]
    theirs = []
    for row in rows:
        conversations = [[*row["prompt"], *response] for response in row["responses"]]
        theirs.append({"query": [tokenizer.apply_chat_template(one, tokenize=False) for one in conversations]})
    write_rows(folder / "rewards.jsonl", ours)
    write_rows(folder / "get_reward.jsonl", theirs)
    get_reward = str(folder / "get_reward.jsonl")
    return {SERVED: str(folder / "rewards.jsonl"), SAME_BODIES: get_reward, PEER: get_reward}


def run(name: str, options: argparse.Namespace, job: dict[str, Any], label: str) -> Outcome:
    """One run of one side."""
    folder = options.out
    if name == OFFLINE:
        return run_side([sys.executable, str(SIDES / "xrlhf_scoring.py")], job, folder, label, options.threads)
    if name == PEER:
        server_job = folder / f"{label}.server.json"
        server_job.write_text(json.dumps({**job, "port": free_port()}), encoding="utf-8")
        server = [sys.executable, str(SIDES / "serve_rm_stand_in.py"), str(server_job)]
    else:
        server = [sys.executable, "-m", "xrlhf.cli.main", "serve", job["model"], "--port", "0"]
        server += ["--device", job["device"], "--dtype", job["dtype"], "--token-budget", str(job["token_budget"])]
        server += ["--max-queue", str(4 * options.clients * options.responses)]
    asking = {
        **job,
        "server": server,
        "path": "/v1/rewards" if name == SERVED else "/get_reward",
        "bodies": job["bodies"][name],
        "clients": options.clients,
    }
    return run_side([sys.executable, str(SIDES / "serving_clients.py")], asking, folder, label, options.threads)


def largest_difference(runs: dict[str, Outcome]) -> float:
    """Between the scores of any side and the offline ones."""
    wanted = runs[OFFLINE].values["scores"]
    return max(abs(a - b) for run in runs.values() for a, b in zip(run.values["scores"], wanted, strict=True))


def main() -> int:
    """Run the benchmark and print its table."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    print(machine_line())
    model = options.out / "model"
    config = MODELS[options.model]
    tokenizer, _ = write_model(model, options.tokenizer, config)
    rows = best_of_rows(options, tokenizer)
    data = options.out / "answers.jsonl"
    write_rows(data, rows)
    job = {
        "model": str(model),
        "data": str(data),
        "bodies": write_bodies(options.out, rows, tokenizer),
        "device": options.device,
        "dtype": options.dtype,
        "token_budget": options.token_budget,
        "max_length": config["max_position_embeddings"],
    }

    differences = []
    if options.dtype != "float32":
        exact = {**job, "dtype": "float32"}
        differences.append(
            largest_difference({name: run(name, options, exact, f"check_{n}") for n, name in enumerate(NAMES)})
        )
    outcomes = run_in_turn(
        NAMES,
        options.repeats,
        lambda name, label: run(name, options, job, label),
        lambda outcome: f"{outcome.values['seconds']:.2f} s",
    )
    if options.dtype == "float32":
        repeats = zip(*outcomes.values(), strict=True)
        differences += [largest_difference(dict(zip(NAMES, runs, strict=True))) for runs in repeats]
    count = options.prompts * options.responses
    print(f"{count} scores, largest difference in float32 {max(differences):.2g}")
    if max(differences) > TOLERANCE:
        print(f"error: the scores differ by more than {TOLERANCE}: the sides do not do the same", file=sys.stderr)
        return 1
    report(options, outcomes)
    return 0


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def report(options: argparse.Namespace, outcomes: dict[str, list[Outcome]]) -> None:
    """Print the table, and save it with every single figure."""
    count = options.prompts * options.responses
    seconds = {name: [o.values["seconds"] for o in runs] for name, runs in outcomes.items()}
    rows = []
    for name, runs in outcomes.items():
        latencies = [o.values["latencies"] for o in runs if "latencies" in o.values]
        ends = zip(seconds[OFFLINE], seconds[name], strict=True)
        peers = zip(seconds[PEER], seconds[name], strict=True)
        rows.append(
            [
                name,
                spread([count / value for value in seconds[name]]),
                spread([theirs / ours for theirs, ours in peers]),
                spread([offline / served for offline, served in ends]),
                spread([statistics.median(run) for run in latencies]) if latencies else "-",
                spread([quantile(run, 0.99) for run in latencies]) if latencies else "-",
                spread([o.memory_mib for o in runs]),
            ]
        )
    header = ["side", "scores/s", "times serve_rm's design", "share of offline", "median s", "p99 s", "peak MiB"]
    text = table(header, rows)
    save_report(options.out, text, outcomes, without=["scores"])


if __name__ == "__main__":
    sys.exit(main())
