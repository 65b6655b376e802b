"""Running two contenders in turn, and saying honestly what came out."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xrlhf.devices.matrix_rate import measure_matrix_rate

__all__ = [
    "Outcome",
    "benchmark_parser",
    "machine_line",
    "matrix_rate",
    "run_in_turn",
    "run_side",
    "save_report",
    "spread",
    "table",
]


@dataclass(frozen=True)
class Outcome:
    """What one run of one side gave.

    Args:
        values: What the side itself measured (its JSON result).
        wall_seconds: From the start of the process to its end.
        peak_mib: Most memory the process held at once.
    """

    values: dict[str, Any]
    wall_seconds: float
    peak_mib: float

    @property
    def memory_mib(self) -> float:
        """Most memory held at once: of the device where it has its own, else of the process."""
        return self.values["peak_device_mib"] or self.peak_mib


def benchmark_parser(description: str, name: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    results = Path(__file__).resolve().parent / "results"
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="rows of hh-rlhf (JSON Lines, gzip or not)")
    parser.add_argument("--tokenizer", required=True, help="a tokenizer.json or a Hugging Face directory")
    parser.add_argument("--repeats", type=int, default=5, help="runs of every side, in turn")
    parser.add_argument("--out", type=Path, default=results / name, help="where results are written")
    return parser


def run_side(command: list[str], job: dict[str, Any], folder: Path, name: str, threads: int) -> Outcome:
    """Run one side in a process of its own: it reads ``JOB.json`` and writes its result beside it.

    Raises:
        RuntimeError: The side failed; the message ends with the end of its output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job_file, result_file, log_file = (folder / f"{name}.{kind}" for kind in ("job.json", "result.json", "log"))
    result_file.unlink(missing_ok=True)
    job_file.write_text(
        json.dumps({**job, "result": str(result_file), "scratch": str(folder / name)}), encoding="utf-8"
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    began = time.perf_counter()
    with log_file.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, str(job_file)], env=environment, stdout=log, stderr=subprocess.STDOUT, close_fds=True
        )
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    if status != 0 or not result_file.is_file():
        tail = "\n".join(log_file.read_text(encoding="utf-8").splitlines()[-15:])
        raise RuntimeError(f"{name} failed (status {status}); the end of {log_file}:\n{tail}")
    return Outcome(json.loads(result_file.read_text(encoding="utf-8")), wall, usage.ru_maxrss / 1024)


def run_in_turn(
    sides: Iterable[str], repeats: int, run: Callable[[str, str], Outcome], shown: Callable[[Outcome], str]
) -> dict[str, list[Outcome]]:
    """All sides in turn, as often as asked, with a line printed for each run.

    Args:
        sides: Their names.
        repeats: Runs of every side.
        run: Runs a side, given its name and a name for the run's files.
        shown: What the line says of a run.
    """
    outcomes: dict[str, list[Outcome]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for number, name in enumerate(outcomes):
            outcome = run(name, f"side_{number}_{repeat}")
            outcomes[name].append(outcome)
            print(f"  run {repeat + 1}: {name}: {shown(outcome)}", flush=True)
    return outcomes


def save_report(out: Path, text: str, outcomes: dict[str, list[Outcome]], without: Collection[str] = ()) -> None:
    """Print what came out, and save it with every single figure.

    Args:
        out: Where.
        text: The table.
        outcomes: Of every side.
        without: Names of values that are too long to keep.
    """
    print("\n" + text)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    raw = {
        name: [
            {
                **{key: value for key, value in o.values.items() if key not in without},
                "wall_seconds": o.wall_seconds,
                "peak_mib": o.peak_mib,
            }
            for o in runs
        ]
        for name, runs in outcomes.items()
    }
    (out / "raw.json").write_text(json.dumps(raw, indent=1), encoding="utf-8")
    print(f"raw figures: {out}")


def spread(values: list[float]) -> str:
    """Median with minimum and maximum, as text."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def matrix_rate(dtype: torch.dtype, threads: int) -> float:
    """Fastest measured rate of matrix products of this machine's processor, FLOP/s, as a run's log has it."""
    torch.set_num_threads(threads)
    return measure_matrix_rate(torch.device("cpu"), dtype, lambda: None)


def machine_line() -> str:
    """The machine in one line: processor, cores, memory, load."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{model}, {cores} cores, {memory:.0f} GiB, {capability}, load {load:.2f} at the start"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )
