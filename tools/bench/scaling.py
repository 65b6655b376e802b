"""Every strategy with one process and with two on this machine's processor, and plans of many devices on paper.

Measured: tokens a second, the time and size of a checkpoint, the most memory of a process beside what the plan says of
it; the losses of all strategies must agree. Example:

    python tools/bench/scaling.py

With --paper nothing is run: what `xrlhf train --dry-run --gpus N` says of a Llama of 8 billion parameters on 8, 64 and
1,024 devices of the memory, rate and link that are given.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "sides"))

from measure import machine_line, spread, table
from workload import LLAMA_25M
from xrlhf_scaling import ADAMW, Pairs

from xrlhf.data.loader import StepLoader
from xrlhf.engine.plan import (
    DevicePlan,
    Hardware,
    Planned,
    Workload,
    assumed_workload,
    plan_by_strategy,
    plan_model,
    plan_strategy,
    step_seconds,
    workload_of,
)
from xrlhf.engine.strategies import STRATEGIES_BY_NAME

SIDE = Path(__file__).resolve().parent / "sides" / "xrlhf_scaling.py"
# DeepSpeed's own 500 million numbers would be most of what so small a model is planned to take.
SMALL_BUCKETS = {"config": {"zero_optimization": {"reduce_bucket_size": 10_000_000}}}
RUNS: list[tuple[str, int]] = [
    *[(name, 1) for name in ("single", "fsdp", "zero1", "zero2", "zero3", "zero3_offload")],
    *[(name, 2) for name in ("ddp", "fsdp", "zero1", "zero2", "zero3", "zero3_offload")],
]
"""Strategies and numbers of processes."""
BACKBONE: dict[str, Any] = {
    "type": "backbone_from_config",
    "model_type": "llama",
    "vocab_size": 8000,
    "pad_token_id": 0,
    **LLAMA_25M,
}
LLAMA_8B = {
    "type": "backbone_from_config",
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
}


def parse() -> argparse.Namespace:
    """The command line."""
    results = Path(__file__).resolve().parent / "results" / "scaling"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a run")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--groups-per-step", type=int, default=4, help="pairs of a step, over all processes")
    parser.add_argument("--prompt", type=int, default=100, help="tokens of a prompt")
    parser.add_argument("--response", type=int, default=50, help="tokens of an answer")
    parser.add_argument("--only", nargs="*", default=None, help="strategies to run; all if not given")
    parser.add_argument("--out", type=Path, default=results, help="where results are written")
    parser.add_argument("--reuse", action="store_true", help="keep what an earlier start, cut off, has measured")
    parser.add_argument("--paper", action="store_true", help="plan many devices, and run nothing")
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="GiB of a device, on paper")
    parser.add_argument("--gpu-tflops", type=float, default=400.0, help="TFLOP/s of a device, on paper")
    parser.add_argument("--link", type=float, default=50.0, help="GB/s that a device sends to the others, on paper")
    return parser.parse_args()


def run(job: dict[str, Any], num_processes: int, folder: Path) -> dict[str, Any]:
    """Train as a job says in so many processes, which share the cores; what the first one measured.

    Raises:
        RuntimeError: A process failed; the message ends with the end of its output.
    """
    name = f"{job['strategy']}_{num_processes}"
    job_file, log_file = folder / f"{name}.job.json", folder / f"{name}.log"
    result = folder / f"{name}.result.json"
    result.unlink(missing_ok=True)
    job_file.write_text(json.dumps({**job, "result": str(result), "scratch": str(folder / name)}), encoding="utf-8")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    processes = []
    with log_file.open("w", encoding="utf-8") as log:
        for rank in range(num_processes):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port}
            environment = {
                **os.environ,
                **{key: str(value) for key, value in place.items()},
                "OMP_NUM_THREADS": str(threads),
                "MKL_NUM_THREADS": str(threads),
            }
            command = [sys.executable, str(SIDE), str(job_file)]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        statuses = [process.wait() for process in processes]
    if any(statuses) or not result.is_file():
        tail = "\n".join(log_file.read_text(encoding="utf-8").splitlines()[-15:])
        raise RuntimeError(f"{name} failed (status {statuses}); the end of {log_file}:\n{tail}")
    for checkpoint in (folder / name).glob("iter_*"):
        checkpoint.unlink()
    values: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return values


def plan_of(job: dict[str, Any], num_processes: int, watched: dict[int, tuple[Planned, Workload]]) -> DevicePlan:
    """What the plan says of a job; ``watched`` remembers the model for each number of processes."""
    if num_processes not in watched:
        pairs = Pairs(4 * job["groups_per_step"], job["prompt"], job["response"], BACKBONE["vocab_size"])
        loader = StepLoader(
            pairs,  # type: ignore[arg-type]
            groups_per_step=job["groups_per_step"],
            token_budget=job["token_budget"],
            seed=0,
            world_size=num_processes,
        )
        workload = workload_of(loader)
        planned = plan_model({"type": "RewardModel", "backbone": BACKBONE}, None, ADAMW, workload, on_cpu=True)
        watched[num_processes] = (planned, workload)
    planned, workload = watched[num_processes]
    preset = dict(STRATEGIES_BY_NAME[job["strategy"]])
    return plan_strategy(
        preset.pop("type"),
        {**preset, **job["options"]},
        planned.needs,
        num_devices=num_processes,
        micro_batches=workload.micro_batches,
    )


def measure(options: argparse.Namespace) -> int:
    """Run everything and print the table."""
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{machine_line()}; torch {torch.__version__}")
    found: dict[str, dict[str, Any]] = {}
    watched: dict[int, tuple[Planned, Workload]] = {}
    for strategy, number in RUNS:
        if options.only is not None and strategy not in options.only:
            continue
        job = {
            "strategy": strategy,
            "options": SMALL_BUCKETS if strategy.startswith("zero") else {},
            "backbone": BACKBONE,
            "warm_up": options.warm_up,
            "steps": options.steps,
            "groups_per_step": options.groups_per_step,
            "prompt": options.prompt,
            "response": options.response,
            "token_budget": options.groups_per_step * (options.prompt + 2 * options.response),
        }
        began = time.perf_counter()
        earlier = options.out / f"{strategy}_{number}.result.json"
        if options.reuse and earlier.is_file():
            values = json.loads(earlier.read_text(encoding="utf-8"))
        else:
            values = run(job, number, options.out)
        plan = plan_of(job, number, watched)
        # On one machine the memory of the host is that of the device.
        values["planned_mib"] = (plan.peak.total + plan.host) / 2**20
        found[f"{strategy}, {number}"] = values
        print(f"  {strategy}, {number} process(es): {time.perf_counter() - began:.0f} s", flush=True)
    losses = [values["losses"] for values in found.values()]
    for step in zip(*losses, strict=True):
        if max(step) - min(step) > 1e-4:
            print(f"error: the losses of a step differ by more than 1e-4: {step}", file=sys.stderr)
            return 1
    text = report(found)
    print("\n" + text)
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    (options.out / "raw.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"raw figures: {options.out}")
    return 0


def report(found: dict[str, dict[str, Any]]) -> str:
    """The table."""
    rows = []
    for name, values in found.items():
        strategy, number = name.split(", ")
        speeds = [values["tokens"] / seconds for seconds in values["step_seconds"]]
        rows.append(
            [
                strategy,
                number,
                spread(speeds),
                f"{values['checkpoint_seconds']:.2f}",
                f"{values['checkpoint_mib']:.0f}",
                " and ".join(f"{peak:.0f}" for peak in values["peak_mib"]),
                f"{values['planned_mib']:.0f}",
            ]
        )
    median = {name: statistics.median(values["step_seconds"]) for name, values in found.items()}
    header = ["strategy", "processes", "tokens/s", "checkpoint s", "checkpoint MiB", "peak MiB", "planned MiB"]
    text = table(header, rows)
    if "single, 1" in median and "ddp, 2" in median:
        text += f"\n\ntwo processes with ddp: {median['single, 1'] / median['ddp, 2']:.2f} times one process"
    return text


def paper(options: argparse.Namespace) -> int:
    """Plans of 8, 64 and 1,024 devices."""
    section = {"dataset": {"max_length": 4096}, "token_budget": 8192, "groups_per_step": 512}
    model = {
        "type": "RewardModel",
        "backbone": LLAMA_8B,
        "precision": "bfloat16",
        "gradient_checkpointing": True,
    }
    hardware = Hardware(False, options.gpu_memory * 2**30, options.gpu_tflops * 1e12, options.link * 1e9)
    rows = []
    for number in (8, 64, 1024):
        workload = assumed_workload(section, number, "a plan on paper")
        planned = plan_model(model, None, ADAMW, workload, on_cpu=False)
        for name, plan in plan_by_strategy(planned, workload, number, {}).items():
            rows.append(paper_row(number, name, plan, planned, workload, hardware))
    header = ["devices", "strategy", "GiB", "fits", "host GiB", "sent GiB", "computing s", "sending s", "tokens/s"]
    text = table(header, rows)
    print(
        f"Llama of 8 billion parameters, float32 weights, bfloat16, checkpointing; 512 pairs of 4,096 tokens a step; "
        f"{options.gpu_memory:g} GiB, {options.gpu_tflops:g} TFLOP/s, {options.link:g} GB/s a device\n"
    )
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "paper.md").write_text(text + "\n", encoding="utf-8")
    return 0


def paper_row(
    number: int, name: str, plan: DevicePlan, planned: Planned, workload: Workload, hardware: Hardware
) -> list[str]:
    """One strategy on so many devices."""
    assert hardware.flops is not None
    assert hardware.link is not None
    assert hardware.room is not None
    computing = planned.flops_per_token * workload.tokens / hardware.flops
    took = step_seconds(plan, hardware, computing)
    assert took is not None
    return [
        f"{number:,}",
        name,
        f"{plan.peak.total / 2**30:.1f}",
        "yes" if plan.peak.total <= hardware.room else "no",
        f"{plan.host / 2**30:.1f}",
        f"{plan.link / 2**30:.0f}",
        f"{computing:.3g}",
        f"{(plan.link + plan.host_link) / hardware.link:.3g}",
        f"{workload.all_tokens / took:,.0f}",
    ]


def main() -> int:
    """Measure, or plan."""
    options = parse()
    return paper(options) if options.paper else measure(options)


if __name__ == "__main__":
    sys.exit(main())
