"""The page of a report: one HTML file that loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xrlhf.evaluation.report import plots
from xrlhf.pages import render

__all__ = ["render_page"]

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def render_page(report: dict[str, Any]) -> str:
    """The page as text; everything that comes from data is escaped."""
    from markupsafe import Markup

    drawn = {
        (benchmark["name"], result["model"]): {
            title: Markup(svg) for title, svg in _plots(result, f"b{place}-m{of_model}").items() if svg
        }
        for place, benchmark in enumerate(report["benchmarks"])
        for of_model, result in enumerate(benchmark["results"])
    }
    return render(_TEMPLATE, filters={"p": p_value}, report=report, plots=drawn, flat=flat_scores)


def _plots(result: dict[str, Any], name: str) -> dict[str, str]:
    drawn: dict[str, str] = {}
    if result["calibration"] is not None:
        drawn["Calibration"] = plots.reliability(result["calibration"]["bins"], f"{name}-cal")
    if (length := result["length"]) is not None:
        rows = [
            ("chosen is longer", "chosen_is_longer"),
            ("chosen is shorter", "chosen_is_shorter"),
            ("same length", "same_length"),
            ("length-matched", "matched_accuracy"),
            ("length taken out", "adjusted_accuracy"),
        ]
        shares = [(label, length[key]["value"], length[key]["low"], length[key]["high"]) for label, key in rows]
        drawn["Accuracy by length"] = plots.bars(shares, f"{name}-len", "Accuracy by length of the answers")
    drawn["Scores"] = plots.histogram(
        result["histograms"]["scores"], f"{name}-sco", "Scores of chosen and rejected answers", "score"
    )
    drawn["Margins"] = plots.histogram(
        result["histograms"]["margins"], f"{name}-mar", "Margins of all pairs", "chosen score minus rejected score"
    )
    return drawn


def flat_scores(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The score trees of all models as rows of one table: a name, how deep it lies, and a cell for each model.

    Part of one tree may stand in another one as well; it is shown where it comes first.
    """
    rows: dict[str, dict[str, Any]] = {}

    def visit(node: dict[str, Any], depth: int, model: str) -> None:
        row = rows.setdefault(node["name"], {"name": node["name"], "depth": depth, "note": node["note"], "cells": {}})
        row["cells"].setdefault(model, node)
        for part in node["parts"]:
            visit(part, depth + 1, model)

    for result in results:
        for node in result["scores"]:
            visit(node, 0, result["model"])
    return list(rows.values())


def p_value(value: float | None) -> str:
    """A p-value as far as it means something."""
    if value is None:
        return "–"
    return "< .001" if value < 0.001 else f"{value:.3f}"
