"""Plots as SVG that stands inside the page: colours and text follow its light or dark style, nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from xrlhf.pages.svg import (
    BOTTOM,
    INNER_HEIGHT,
    INNER_WIDTH,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    grid_x,
    grid_y,
    line,
    svg,
)

__all__ = ["bars", "histogram", "reliability"]

_LABEL_WIDTH = 150
_LEGEND_HEIGHT = 20


def reliability(bins: Sequence[dict[str, Any]], name: str) -> str:
    """Confidence against accuracy: a point a bin, with its interval, and the diagonal of perfect calibration.

    Args:
        bins: As in the report.
        name: Unique on the page.
    """
    found = [one for one in bins if one["num_pairs"]]

    def x(value: float) -> float:
        return LEFT + (value - 0.5) / 0.5 * INNER_WIDTH

    def y(value: float) -> float:
        return TOP + (1 - value) * INNER_HEIGHT

    parts = [grid_x(x(tick), f"{tick:.1f}") for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    parts += [grid_y(y(tick), f"{tick:g}") for tick in (0.0, 0.25, 0.5, 0.75, 1.0)]
    parts.append(line(x(0.5), y(0.5), x(1.0), y(1.0), "diagonal"))
    for one in found:
        place = x(one["confidence"])
        parts.append(line(place, y(one["accuracy_low"]), place, y(one["accuracy_high"]), "interval"))
    if len(found) > 1:
        points = " ".join(f"{x(one['confidence']):.1f},{y(one['accuracy']):.1f}" for one in found)
        parts.append(f'<polyline class="curve" points="{points}"/>')
    parts += [
        f'<circle class="point" cx="{x(one["confidence"]):.1f}" cy="{y(one["accuracy"]):.1f}" r="4">'
        f"<title>{one['num_pairs']} pairs: confidence {one['confidence']:.3f}, accuracy {one['accuracy']:.3f}</title>"
        "</circle>"
        for one in found
    ]
    described = "; ".join(f"confidence {one['confidence']:.2f}: accuracy {one['accuracy']:.2f}" for one in found)
    return svg(name, "Reliability diagram", described, parts, "confidence of the model", "share right")


def histogram(values: dict[str, Any], name: str, title: str, label: str) -> str:
    """Two sets of counts in the same bins: the first filled, the second as an outline.

    Args:
        values: ``edges`` and ``counts``, as in the report.
        name: Unique on the page.
        title: What it shows.
        label: Of the horizontal axis.
    """
    edges, counts = values["edges"], values["counts"]
    if len(edges) < 2:
        return ""
    most = max(max(of_name) for of_name in counts.values()) or 1

    def x(value: float) -> float:
        return LEFT + (value - edges[0]) / (edges[-1] - edges[0]) * INNER_WIDTH

    def y(count: float) -> float:
        return TOP + _LEGEND_HEIGHT + (1 - count / most) * (INNER_HEIGHT - _LEGEND_HEIGHT)

    parts = [grid_y(y(tick), f"{tick:g}") for tick in sorted({0, most // 2, most})]
    ticks = [edges[0], (edges[0] + edges[-1]) / 2, edges[-1]]
    parts += [grid_x(x(tick), f"{tick:.3g}") for tick in ticks]
    (first, of_first), (second, of_second) = counts.items()
    parts += [
        f'<rect class="filled" x="{x(low):.1f}" y="{y(count):.1f}" width="{x(high) - x(low):.1f}" '
        f'height="{y(0) - y(count):.1f}"><title>{escape(first)}, {low:.3g} to {high:.3g}: {count}</title></rect>'
        for low, high, count in zip(edges[:-1], edges[1:], of_first, strict=True)
        if count
    ]
    steps = [f"M{x(edges[0]):.1f},{y(0):.1f}"]
    steps += [f"V{y(count):.1f}H{x(high):.1f}" for high, count in zip(edges[1:], of_second, strict=True)]
    parts.append(f'<path class="outline" d="{"".join(steps)}V{y(0):.1f}"><title>{escape(second)}</title></path>')
    parts.append(_legend(first, second))
    described = f"{sum(of_first)} {first}, {sum(of_second)} {second}, from {edges[0]:.3g} to {edges[-1]:.3g}"
    return svg(name, title, described, parts, label, "count")


def bars(rows: Sequence[tuple[str, float | None, float | None, float | None]], name: str, title: str) -> str:
    """Horizontal bars of shares from 0 to 1, each with its interval.

    Args:
        rows: Label, share, lower and upper bound; a share of None is drawn as an empty line.
        name: Unique on the page.
        title: What it shows.
    """
    step = 30
    height = step * len(rows) + TOP + BOTTOM
    inner = WIDTH - _LABEL_WIDTH - RIGHT

    def x(value: float) -> float:
        return _LABEL_WIDTH + value * inner

    bottom = height - BOTTOM
    parts = [grid_x(x(tick), f"{tick:g}", bottom) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)]
    said = []
    for place, (label, value, low, high) in enumerate(rows):
        top = TOP + place * step + 4
        parts.append(
            f'<text class="label" x="{_LABEL_WIDTH - 8}" y="{top + 15}" text-anchor="end">{escape(label)}</text>'
        )
        said.append(f"{label}: {'none' if value is None else format(value, '.3f')}")
        if value is None:
            continue
        shown = f"<title>{escape(said[-1])}</title>"
        parts.append(
            f'<rect class="filled" x="{x(0):.1f}" y="{top}" width="{value * inner:.1f}" height="20">{shown}</rect>'
        )
        if low is not None and high is not None:
            parts.append(line(x(low), top + 10, x(high), top + 10, "interval"))
    return svg(name, title, "; ".join(said), parts, "", "", height)


def _legend(first: str, second: str) -> str:
    """Above what it explains, in one line."""
    parts = []
    for kind, label, x in (("filled", first, LEFT + 8), ("outline", second, LEFT + 8 + INNER_WIDTH // 2)):
        parts.append(
            f'<rect class="{kind}" x="{x}" y="{TOP - 2}" width="12" height="10"/>'
            f'<text class="label" x="{x + 17}" y="{TOP + 7}">{escape(label)}</text>'
        )
    return "".join(parts)
