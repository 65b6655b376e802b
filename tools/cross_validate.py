"""Trains a recipe once per fold and pools the held-out accuracy.

The recipe must have the settings ``fold`` and ``num_folds``. Example:

    python tools/cross_validate.py tiny_reward_hh_cpu --folds 5 --cfg-options data_path=harmless-base.jsonl.gz
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from xrlhf.evaluation.metrics import wilson_interval


def run_fold(recipe: str, fold: int, folds: int, out: Path, options: list[str]) -> dict[str, float]:
    """Train with one fold held out and return the metrics on it; raises CalledProcessError if a command fails."""
    command = [sys.executable, "-m", "xrlhf.cli.main"]
    chosen = ["--cfg-options", f"fold={fold}", f"num_folds={folds}", *options]
    work_dir, metrics = out / f"fold_{fold}", out / f"fold_{fold}.json"
    with (out / f"fold_{fold}.log").open("w", encoding="utf-8") as log:
        train = [*command, "train", recipe, "--work-dir", str(work_dir), "--resume", "auto", *chosen]
        subprocess.run(train, check=True, stdout=log, stderr=subprocess.STDOUT)
        checkpoint = work_dir / (work_dir / "last_checkpoint").read_text(encoding="utf-8").strip()
        test = [*command, "test", recipe, "--checkpoint", str(checkpoint), "--out", str(metrics), *chosen]
        subprocess.run(test, check=True, stdout=log, stderr=subprocess.STDOUT)
    return dict(json.loads(metrics.read_text(encoding="utf-8")))


def main() -> int:
    """Run all folds, print a line for each and the pooled result, and save it as ``pooled.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe with the settings fold and num_folds")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/cross_validation"))
    parser.add_argument("--cfg-options", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    correct = total = 0.0
    for fold in range(arguments.folds):
        try:
            metrics = run_fold(arguments.recipe, fold, arguments.folds, arguments.out, arguments.cfg_options)
        except subprocess.CalledProcessError as error:
            log = (arguments.out / f"fold_{fold}.log").read_text(encoding="utf-8").strip().splitlines()
            print(f"fold {fold} failed: {log[-1] if log else 'no output'}", file=sys.stderr)
            return error.returncode
        print(
            f"fold {fold}: accuracy {metrics['accuracy']:.4f} "
            f"({metrics['accuracy_low']:.4f} to {metrics['accuracy_high']:.4f}), {metrics['num_groups']:.0f} groups",
            flush=True,
        )
        correct += metrics["accuracy"] * metrics["num_groups"]
        total += metrics["num_groups"]
    low, high = wilson_interval(correct, int(total))
    print(f"pooled: accuracy {correct / total:.4f} (95 %: {low:.4f} to {high:.4f}), {total:.0f} groups")
    pooled = {"accuracy": correct / total, "accuracy_low": low, "accuracy_high": high, "num_groups": total}
    (arguments.out / "pooled.json").write_text(json.dumps(pooled, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
