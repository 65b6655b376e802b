"""Training side by side: what a benchmark of two trainers runs, measures and prints, whatever is trained."""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Outcome, benchmark_parser, matrix_rate, run_side, save_report, spread, table

__all__ = ["Contender", "TrainingBenchmark", "slug", "training_parser"]

WARMUP_STEPS = 2


@dataclass(frozen=True)
class Contender:
    """One side with its settings.

    Args:
        command: What runs it; the job's file comes last.
        settings: What its job has beside what all have in common.
    """

    command: list[str]
    settings: dict[str, Any]


def training_parser(description: str, name: str) -> argparse.ArgumentParser:
    """The options that benchmarks of training have."""
    parser = benchmark_parser(description, name)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--steps", type=steps, default=12, help=f"optimizer steps of a run; the first {WARMUP_STEPS} are not timed"
    )
    parser.add_argument("--token-budget", type=int, default=8192)
    parser.add_argument("--peer-batches", type=int, nargs="+", default=[1, 8], help="TRL's batch sizes to try")
    parser.add_argument("--max-length", type=int, default=1024)
    return parser


def steps(text: str) -> int:
    """Enough of them that some are timed."""
    count = int(text)
    if count <= WARMUP_STEPS:
        raise argparse.ArgumentTypeError(f"{count} leaves none to time behind the first {WARMUP_STEPS}")
    return count


@dataclass(frozen=True)
class TrainingBenchmark:
    """Contenders that train the same model on the same rows.

    Args:
        options: The command line.
        contenders: By name, ours first.
        job: What all of them are told.
        unit: What is counted: pairs, or conversations.
        units_per_step: How many of them a step has.
        flops_per_unit: Matrix products that one of them takes at least, forward and backward.
        baseline: Name of the contender that memory is compared with, and of ours under the same settings.
    """

    options: argparse.Namespace
    contenders: dict[str, Contender]
    job: dict[str, Any]
    unit: str
    units_per_step: int
    flops_per_unit: float
    baseline: tuple[str, str]

    def run(self) -> int:
        """Compare first losses, run everything in turn, print and save what came out; the exit status."""
        if not self.first_losses_agree():
            print(
                "error: the first-step losses differ by more than 1e-4, so the sides do not do the same",
                file=sys.stderr,
            )
            return 1
        outcomes: dict[str, list[Outcome]] = {name: [] for name in self.contenders}
        rates = []
        for repeat in range(self.options.repeats):
            if self.options.device == "cpu":
                rates.append(matrix_rate(getattr(torch, self.options.dtype), self.options.threads))
            for name in self.contenders:
                outcome = self._run(name, f"{slug(name)}_{repeat}", dtype=self.options.dtype, steps=self.options.steps)
                outcomes[name].append(outcome)
                print(f"  run {repeat + 1}: {name}: {self.speed(outcome):.2f} {self.unit}/s", flush=True)
        self._report(outcomes, rates)
        return 0

    def first_losses_agree(self) -> bool:
        """Whether one step in float32 has the same loss everywhere."""
        first = {
            name: self._run(name, f"check_{slug(name)}", dtype="float32", steps=1).values["losses"][0]
            for name in self.contenders
        }
        print("first-step losses in float32: " + ", ".join(f"{name} {loss:.6f}" for name, loss in first.items()))
        return max(first.values()) - min(first.values()) <= 1e-4

    def _run(self, name: str, run_name: str, **settings: Any) -> Outcome:
        contender = self.contenders[name]
        job = {**self.job, **contender.settings, **settings}
        return run_side(contender.command, job, self.options.out, run_name, self.options.threads)

    def speed(self, outcome: Outcome) -> float:
        """Units a second over the steps after the warm-up."""
        seconds = outcome.values["step_seconds"][WARMUP_STEPS - 1 :]
        return float(self.units_per_step * len(seconds) / sum(seconds))

    def _report(self, outcomes: dict[str, list[Outcome]], rates: list[float]) -> None:
        """Print the table, and save it with every single figure and a plot."""
        out: Path = self.options.out
        speeds = {name: [self.speed(o) for o in runs] for name, runs in outcomes.items()}
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
        header = ["side", f"{self.unit}/s", "xrlhf is faster by", "peak MiB", "xrlhf needs", "seconds to step 1"]
        text = table(header, rows) + "\n\n" + self._memory_line(outcomes)
        if rates:
            rate = statistics.median(rates)
            floor = rate / self.flops_per_unit
            text += (
                f"\n\nmatrix products: {spread([r / 1e9 for r in rates])} GFLOP/s; floor {floor:.1f} {self.unit}/s "
                f"({self.flops_per_unit / 1e9:.1f} GFLOP each); xrlhf reaches "
                f"{statistics.median(speeds['xrlhf']) / floor:.0%} of it"
            )
        self._plot(speeds, out / "speed.png")
        save_report(out, text, outcomes)

    def _memory_line(self, outcomes: dict[str, list[Outcome]]) -> str:
        """Peak memory of ours under the settings that the baseline has, activation checkpointing among them."""
        peaks = {name: statistics.median(o.memory_mib for o in runs) for name, runs in outcomes.items()}
        theirs, asked = self.baseline
        ours = asked if asked in peaks else "xrlhf"
        return f"peak memory: {ours} needs {peaks[ours] / peaks[theirs]:.2f} of what {theirs} needs"

    def _plot(self, speeds: dict[str, list[float]], path: Path) -> None:
        """Every run as a dot, medians as bars."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for place, (_, values) in enumerate(speeds.items()):
            axes.bar(place, float(np.median(values)), width=0.6, alpha=0.5)
            axes.plot([place] * len(values), values, "k.", markersize=4)
        axes.set_xticks(range(len(speeds)), list(speeds))
        axes.set_ylabel(f"{self.unit} a second")
        axes.grid(axis="y", alpha=0.3)
        figure.savefig(path, dpi=120)


def slug(name: str) -> str:
    """A name as a part of a file's."""
    return name.lower().replace(" ", "_")
