"""Trains the tiny reward model on human comparisons with one objective after the other and compares them held out.

    python tools/compare_objectives.py --data harmless-base.test.jsonl.gz --tokenizer tokenizer.json

Everything but the objective is the recipe tiny_reward_hh_cpu: seed, data, split by prompt, steps. A run that is there
already is gone on with, so the command may be stopped and started again. Prints a table in Markdown, for the pairs of
all held-out folds together, and writes it, with the figures, beside the runs:

    accuracy   pairs ranked right, equal scores counting one half, with its 95 % interval
    log-loss   mean of -log sigmoid(chosen - rejected); log 2 = 0.693 knows nothing
    ECE        expected calibration error of sigmoid(chosen - rejected) in ten bins of the winner's probability
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from xrlhf.config import dump_recipe, find_recipe, load_recipe
from xrlhf.evaluation.metrics import wilson_interval

RECIPE = "tiny_reward_hh_cpu"
_BINS = 10

OBJECTIVES: dict[str, dict[str, Any]] = {
    "Bradley-Terry": {"loss": {"type": "xrlhf.losses.RankingLoss"}},
    "Bradley-Terry, label smoothing 0.1": {"loss": {"type": "xrlhf.losses.RankingLoss", "label_smoothing": 0.1}},
    "focal, gamma 2": {"loss": {"type": "xrlhf.losses.FocalRankingLoss"}},
    "Bradley-Terry + log barrier 0.01": {
        "loss": {"type": "xrlhf.losses.RankingLoss"},
        "penalty": {"type": "xrlhf.losses.LogBarrierPenalty"},
    },
    "Bradley-Terry + L2 0.01": {
        "loss": {"type": "xrlhf.losses.RankingLoss"},
        "penalty": {"type": "xrlhf.losses.L2Penalty"},
    },
    "Bradley-Terry + centring 0.01": {
        "loss": {"type": "xrlhf.losses.RankingLoss"},
        "penalty": {"type": "xrlhf.losses.CenteringPenalty"},
    },
    "Plackett-Luce": {"loss": {"type": "xrlhf.losses.PlackettLuceLoss"}},
    "Davidson, tie share 1/3": {"loss": {"type": "xrlhf.losses.DavidsonLoss"}},
    "Rao-Kupper, tie share 1/3": {"loss": {"type": "xrlhf.losses.RaoKupperLoss"}},
}
"""What replaces the loss and the penalty of the recipe. A margin from ratings is left out: the data has none."""


@dataclass(frozen=True)
class Result:
    """One objective on all held-out pairs."""

    objective: str
    num_pairs: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    log_loss: float
    calibration_error: float
    mean_margin: float
    seconds: float


def summarise(objective: str, margins: Sequence[float], seconds: float) -> Result:
    """The figures of an objective from the score differences chosen minus rejected."""
    right = sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in margins)
    low, high = wilson_interval(right, len(margins))
    return Result(
        objective=objective,
        num_pairs=len(margins),
        accuracy=right / len(margins),
        accuracy_low=low,
        accuracy_high=high,
        log_loss=math.fsum(max(-d, 0.0) + math.log1p(math.exp(-abs(d))) for d in margins) / len(margins),
        calibration_error=expected_calibration_error(margins),
        mean_margin=math.fsum(margins) / len(margins),
        seconds=seconds,
    )


def expected_calibration_error(margins: Sequence[float], bins: int = _BINS) -> float:
    """Mean over pairs of |share ranked right - mean probability of the winner| of the pair's bin.

    The winner is the response with the higher score, its probability sigmoid(|d|), from one half to 1; bins are equally
    wide. (Guo et al., arXiv 1706.04599, equation 3.)
    """
    of_bin: dict[int, list[tuple[float, float]]] = {}
    for d in margins:
        confidence = 1 / (1 + math.exp(-abs(d)))
        number = min(bins - 1, int((confidence - 0.5) * 2 * bins))
        of_bin.setdefault(number, []).append((confidence, 1.0 if d > 0 else 0.5 if d == 0 else 0.0))
    return math.fsum(abs(math.fsum(right - c for c, right in pairs)) for pairs in of_bin.values()) / len(margins)


def train(recipe: Path, work_dir: Path, log: Path) -> None:
    """Run the recipe to its end, or go on where it stopped; raises CalledProcessError if it fails."""
    command = [sys.executable, "-m", "xrlhf.cli.main", "train", str(recipe), "--work-dir", str(work_dir)]
    with log.open("a", encoding="utf-8") as file:
        subprocess.run([*command, "--resume", "auto"], check=True, stdout=file, stderr=subprocess.STDOUT)


@torch.no_grad()
def held_out_margins(recipe: Path, work_dir: Path) -> list[float]:
    """Score difference of every held-out pair, by the last checkpoint of a run."""
    from xrlhf.engine.build import build_eval_loader, build_model, build_tokenizer
    from xrlhf.engine.checkpoint import load_checkpoint, load_strictly

    config = load_recipe(recipe)
    checkpoint = work_dir / (work_dir / "last_checkpoint").read_text(encoding="utf-8").strip()
    tokenizer = build_tokenizer(config)
    model: Any = build_model(config, tokenizer)
    load_strictly(model, load_checkpoint(checkpoint)["state_dict"], model.checkpoint_names(), str(checkpoint))
    model.eval()
    margins: list[float] = []
    for item in build_eval_loader(config, tokenizer):
        scores = model.score(item.batch).double()
        margins += (scores[:, 0] - scores[:, 1]).tolist()
    return margins


def compare(arguments: argparse.Namespace) -> list[Result]:
    """Train and evaluate every objective asked for, printing each result as it comes."""
    results: list[Result] = []
    for name in arguments.only or OBJECTIVES:
        margins: list[float] = []
        began = time.perf_counter()
        for fold in range(arguments.folds):
            folder = arguments.out / f"{name.replace(' ', '_').replace('/', '-')}_fold_{fold}"
            folder.mkdir(parents=True, exist_ok=True)
            options = [
                f"data_path={arguments.data}",
                f"tokenizer_path={arguments.tokenizer}",
                f"fold={fold}",
                *arguments.cfg_options,
            ]
            config = load_recipe(find_recipe(RECIPE), options)
            config.model.update({"penalty": None, **OBJECTIVES[name]})
            recipe = folder / "recipe.py"
            dump_recipe(config, recipe)
            train(recipe, folder / "run", folder / "log.txt")
            margins += held_out_margins(recipe, folder / "run")
        results.append(summarise(name, margins, time.perf_counter() - began))
        print(f"{name}: accuracy {results[-1].accuracy:.4f}, {results[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    return results


def markdown(results: Sequence[Result]) -> str:
    """The results as a table."""
    lines = ["| objective | accuracy | 95 % interval | log-loss | ECE | mean margin |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r.objective} | {r.accuracy:.3f} | {r.accuracy_low:.3f} to {r.accuracy_high:.3f} | {r.log_loss:.3f} | "
        f"{r.calibration_error:.3f} | {r.mean_margin:.2f} |"
        for r in results
    ]
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """Compare, print and save; 1 if a run fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="a file of hh-rlhf")
    parser.add_argument("--tokenizer", required=True, type=Path, help="a directory, or a tokenizer.json")
    parser.add_argument("--folds", type=int, default=1, help="folds to hold out, one after the other, of five")
    parser.add_argument("--only", action="append", choices=OBJECTIVES, help="this objective alone; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/objectives"))
    parser.add_argument(
        "--cfg-options", nargs="*", default=[], metavar="KEY=VALUE", help="more of the recipe's settings"
    )
    arguments = parser.parse_args(given)
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        results = compare(arguments)
    except subprocess.CalledProcessError as error:
        print(f"failed: {' '.join(map(str, error.cmd))}; see log.txt in {arguments.out}", file=sys.stderr)
        return 1
    (arguments.out / "table.md").write_text(markdown(results) + "\n", encoding="utf-8")
    figures = json.dumps([asdict(result) for result in results], indent=2)
    (arguments.out / "results.json").write_text(figures + "\n", encoding="utf-8")
    print(markdown(results))
    print(f"\n{results[0].num_pairs} held-out pairs, {sum(r.seconds for r in results):.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
