"""The three files of a report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xrlhf.evaluation.report.model_run import ModelRun

__all__ = ["FILES", "PAGE", "REPORT", "SCORES", "is_report", "write_report"]

REPORT, PAGE, SCORES = "report.json", "report.html", "scores.jsonl"

FILES = (REPORT, PAGE, SCORES)
"""All that a report's directory holds."""


def is_report(path: str) -> bool:
    """Whether ``path`` is the directory of a finished report, or its ``report.json``."""
    place = Path(path).expanduser()
    return (place / REPORT).is_file() or (place.name == REPORT and place.is_file())


def write_report(report: dict[str, Any], runs: Sequence[ModelRun], folder: Path) -> None:
    """Write ``report.json``, ``report.html`` and ``scores.jsonl`` into a folder.

    Args:
        report: What :func:`~xrlhf.evaluation.report.content.build_report` gave.
        runs: The models, with every row's scores.
        folder: An empty folder.
    """
    from xrlhf.evaluation.report.page import render_page

    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    _write(folder / REPORT, text + "\n")
    _write(folder / PAGE, render_page(report))
    _write(folder / SCORES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in _score_lines(runs)))


def _write(file: Path, text: str) -> None:
    # Data may hold half a surrogate pair, which has no UTF-8.
    file.write_text(text, encoding="utf-8", errors="replace")


def _score_lines(runs: Sequence[ModelRun]) -> Iterator[dict[str, Any]]:
    for run in runs:
        for benchmark, scores in run.scores.items():
            for row in scores.rows:
                yield {"model": run.name, "benchmark": benchmark, **asdict(row)}
            for left_out in scores.left_out:
                yield {
                    "model": run.name,
                    "benchmark": benchmark,
                    "location": left_out.location,
                    "error": f"{left_out.reason}: {left_out.detail}",
                }
