"""A picture of the run's curves, joined over all its starts."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from xrlhf.files import replacing
from xrlhf.registry import HOOKS

__all__ = ["CurvesHook", "draw_curves", "read_curves"]

logger = logging.getLogger("xrlhf")

_PANELS = (
    ("loss", ("loss",)),
    ("accuracy", ("acc", "accuracy", "reward_acc")),
    ("score", ("chosen_score_mean", "rejected_score_mean", "chosen_reward_mean", "rejected_reward_mean", "reward")),
    ("learning rate", ("lr",)),
)


def read_curves(work_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Every logged scalar of a run as (step, value) points in order of steps.

    A run may have been started several times; where a later start repeats steps, its values replace the earlier ones.
    Names of validation results begin with ``val/``. A line that a killed run left unfinished is passed over.
    """
    points: dict[str, dict[int, float]] = {}
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        rows = list(_rows(path))
        if not rows:
            continue
        first = min(int(row["step"]) for row in rows)
        for values in points.values():
            for step in [step for step in values if step >= first]:
                del values[step]
        for row in rows:
            for name, value in row.items():
                if name != "step" and isinstance(value, (int, float)):
                    points.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: sorted(values.items()) for name, values in points.items() if values}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row


def draw_curves(work_dir: Path, path: Path) -> Path | None:
    """Draw loss, accuracy, scores and learning rate of a run into a PNG file; None if nothing was logged."""
    curves = read_curves(work_dir)
    if not curves:
        logger.warning("no curves were logged in %s, so no picture is drawn", work_dir)
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for number, name in enumerate(names):
            for key, style in ((name, "-"), (f"val/{name}", "o--")):
                if points := curves.get(key):
                    steps, values = zip(*points, strict=True)
                    axes.plot(steps, values, style, color=f"C{number}", label=key, markersize=4, linewidth=1.2)
        axes.set_title(title)
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(axes.get_lines()) > 1:
            axes.legend(fontsize="small")
    figure.suptitle(work_dir.name)
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    return path


@HOOKS.register_module()
class CurvesHook(Hook):
    """Draws ``curves.png`` into the run's directory when training ends."""

    priority = "LOWEST"

    def after_train(self, runner: Any) -> None:
        if runner.rank != 0:
            return
        try:
            path = draw_curves(Path(runner.work_dir), Path(runner.work_dir) / "curves.png")
        except Exception as error:
            # The weights are safe by now: no picture is worth a failed run.
            logger.warning("the curves could not be drawn: %s", error)
            return
        if path is not None:
            logger.info("curves drawn to %s", path)
