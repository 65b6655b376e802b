"""Trains a recipe with several seeds, and draws and tabulates a measure of the log over all of them.

Every run starts from the same files; the seed decides order, draws and new weights. A run that was cut off goes on
where it stopped. Example:

    python tools/repeat_seeds.py tiny_grpo_cpu --seeds 5 --measure val/reward --goal 5.4
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from xrlhf.engine.hooks.curves import read_curves

Curve = list[tuple[int, float]]


def run_seed(recipe: str, seed: int, out: Path, options: list[str]) -> Path:
    """Train with one seed; returns the run's directory.

    Raises:
        subprocess.CalledProcessError: Training failed.
    """
    work_dir = out / f"seed_{seed}"
    command = [sys.executable, "-m", "xrlhf.cli.main", "train", recipe, "--work-dir", str(work_dir)]
    chosen = ["--resume", "auto", "--cfg-options", f"seed={seed}", *options]
    with (out / f"seed_{seed}.log").open("a", encoding="utf-8") as log:
        subprocess.run([*command, *chosen], check=True, stdout=log, stderr=subprocess.STDOUT)
    return work_dir


def draw(curves: dict[int, dict[str, Curve]], measures: list[str], title: str, goal: float | None, path: Path) -> None:
    """One panel for each measure, a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(measures), 3.2), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        for seed, of_run in curves.items():
            points = of_run[measure]
            axes.plot([step for step, _ in points], [value for _, value in points], label=f"seed {seed}", linewidth=1.2)
        if goal is not None and measure == measures[0]:
            axes.axhline(goal, color="0.5", linestyle="--", linewidth=0.8)
        axes.set_xlabel("step")
        axes.set_ylabel(measure)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    # The same figures give the same file.
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> int:
    """Run all seeds, print a line for each, and save the curves; 1 if a seed misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe with the setting seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--measure", default="val/loss", help="what is judged, by its name in the log")
    parser.add_argument("--goal", type=float, help="what the last value should reach")
    parser.add_argument("--show", nargs="*", default=[], help="further names of the log, drawn beside it")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/seeds"))
    parser.add_argument("--cfg-options", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    out = arguments.out / Path(arguments.recipe).stem
    out.mkdir(parents=True, exist_ok=True)
    measures = [arguments.measure, *arguments.show]
    curves: dict[int, dict[str, Curve]] = {}
    seconds: dict[int, float] = {}
    for seed in range(arguments.seeds):
        began = time.perf_counter()
        try:
            work_dir = run_seed(arguments.recipe, seed, out, arguments.cfg_options)
        except subprocess.CalledProcessError as error:
            log = (out / f"seed_{seed}.log").read_text(encoding="utf-8").strip().splitlines()
            print(f"seed {seed} failed: {log[-1] if log else 'no output'}", file=sys.stderr)
            return error.returncode
        seconds[seed] = time.perf_counter() - began
        curves[seed] = read_curves(work_dir)
        if missing := [name for name in measures if name not in curves[seed]]:
            known = ", ".join(sorted(curves[seed]))
            print(f"error: the log has no {', '.join(missing)}; it has {known}", file=sys.stderr)
            return 2
        last = ", ".join(f"{name} {curves[seed][name][-1][1]:.3f}" for name in measures)
        print(f"seed {seed}: {last} ({seconds[seed]:.0f} s)", flush=True)
    found = [of_run[arguments.measure][-1][1] for of_run in curves.values()]
    print(f"{arguments.measure}: median {statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})")
    draw(curves, measures, Path(arguments.recipe).stem, arguments.goal, out / "curves.svg")
    kept = {
        str(seed): {"seconds": seconds[seed], **{name: of_run[name] for name in measures}}
        for seed, of_run in curves.items()
    }
    (out / "curves.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(f"curves: {out / 'curves.svg'}")
    if arguments.goal is None:
        return 0
    reached = sum(value >= arguments.goal for value in found)
    print(f"{reached} of {len(found)} seeds reached {arguments.goal:g}")
    return int(reached < len(found))


if __name__ == "__main__":
    sys.exit(main())
