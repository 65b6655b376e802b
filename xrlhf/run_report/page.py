"""The page of a run, or of several side by side: one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from xrlhf.data.reasons import Reason
from xrlhf.pages import render
from xrlhf.run_report.plots import curve_plot
from xrlhf.run_report.record import RunRecord
from xrlhf.version import __version__

__all__ = ["render_runs"]

_TEMPLATE = Path(__file__).with_name("page.html.jinja")

_FIRST = (
    *("loss", "acc", "accuracy", "reward_acc", "margin", "reward", "reward_mean", "kl_answer"),
    *("kl", "entropy", "clip_share", "explained_variance", "answer_length", "end_share", "token_acc"),
    *("chosen_score_mean", "rejected_score_mean", "chosen_reward_mean", "rejected_reward_mean", "mse", "correlation"),
)
"""Curves that are looked at first, in this order; a run has some of them."""

_SPEED = ("tokens_per_second", "groups_per_second", "mfu", "time", "data_time", "memory")
_NOT_DRAWN = ("num_samples", "num_tokens", "iter", "eta", "epoch")
_MOST_SAMPLES = 40


def render_runs(runs: Sequence[RunRecord], *, created: datetime) -> str:
    """The page as text; everything that comes from the runs is escaped.

    Args:
        runs: One or more; several are drawn into the same plots.
        created: When.
    """
    from markupsafe import Markup

    drawn = {
        group: [(title, Markup(svg)) for title, svg in _plots(runs, names, group) if svg]
        for group, names in _groups(runs).items()
    }
    return render(
        _TEMPLATE,
        filters={"value": _value, "reason": _reason},
        runs=runs,
        plots=drawn,
        speed=[name for name in _SPEED if any(name in run.curves for run in runs)],
        validation=_validation(runs),
        samples={run.name: _samples(run) for run in runs},
        created=created.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
    )


def _groups(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Names of curves by where they stand on the page, less the ``val/`` of their validation."""
    names = list(dict.fromkeys(name.removeprefix("val/") for run in runs for name in run.curves))
    names = [name for name in names if not name.startswith("num_") and name not in _NOT_DRAWN]
    first = [name for name in _FIRST if name in names]
    speed = [name for name in _SPEED if name in names]
    return {"What is learnt": first, "Speed": speed, "Others": [n for n in names if n not in (*first, *speed)]}


def _plots(runs: Sequence[RunRecord], names: Sequence[str], group: str) -> Iterator[tuple[str, str]]:
    for place, name in enumerate(names):
        kinds = [(name, "training"), (f"val/{name}", "validation")]
        kinds = [(key, kind) for key, kind in kinds if any(key in run.curves for run in runs)]
        curves = {}
        for run in runs:
            for key, kind in kinds:
                if key in run.curves:
                    words = [*([run.name] if len(runs) > 1 else []), *([kind] if len(kinds) > 1 else [])]
                    curves[", ".join(words) or kind] = run.curves[key]
        yield name, curve_plot(curves, f"{group.split()[0].lower()}-{place}", name)


def _validation(runs: Sequence[RunRecord]) -> dict[str, list[float | None]]:
    """The last value of every result of validation, by name: one of each run."""
    names = dict.fromkeys(name for run in runs for name in run.curves if name.startswith("val/"))
    return {name.removeprefix("val/"): [run.last(name) for run in runs] for name in names}


def _samples(run: RunRecord) -> list[dict[str, Any]]:
    """The newest samples, newest first, with the question as text."""
    shown = []
    for row in reversed(run.samples[-_MOST_SAMPLES:]):
        prompt = row.get("prompt", "")
        asked = prompt[-1].get("content", "") if isinstance(prompt, list) and prompt else prompt
        shown.append(
            {"step": row["step"], "asked": asked, "said": row.get("response", ""), "reward": row.get("reward")}
        )
    return shown


def _value(value: float | None) -> str:
    """A number of any size; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _reason(name: str) -> str:
    return Reason(name).description if name in {str(reason) for reason in Reason} else name
