"""Curves of one run or several as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from xrlhf.pages.svg import INNER_HEIGHT, INNER_WIDTH, LEFT, TOP, grid_x, grid_y, svg

__all__ = ["SERIES", "curve_plot", "thinned"]

SERIES = 6
"""Curves of one plot that are told apart by colour; more begin with the first colour again, dashed."""

Points = Sequence[tuple[int, float]]

_MOST_POINTS = 240
_NUM_TICKS = 4
_SHORT = 22
"""Characters of a label that has half the width."""


def thinned(points: Points, most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` points, each the mean of neighbours, the last one as it is."""
    if len(points) <= most:
        return [(float(step), value) for step, value in points]
    size = math.ceil(len(points) / (most - 1))
    parts = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    means = [(sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part)) for part in parts]
    return [*means, (float(points[-1][0]), points[-1][1])]


def curve_plot(curves: Mapping[str, Points], name: str, title: str) -> str:
    """Lines over optimizer steps, in the order given, with a legend; values that are no numbers are gaps.

    Args:
        curves: Points by label.
        name: Unique on the page.
        title: What it shows.

    Returns:
        The picture; empty where no curve has a finite value.
    """
    drawn = {label: [point for point in thinned(points) if math.isfinite(point[1])] for label, points in curves.items()}
    drawn = {label: points for label, points in drawn.items() if points}
    if not drawn:
        return ""
    steps = [step for points in drawn.values() for step, _ in points]
    values = [value for points in drawn.values() for _, value in points]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    columns = 2 if max(map(len, drawn)) <= _SHORT else 1
    top = TOP + 16 * math.ceil(len(drawn) / columns) + 4

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * INNER_WIDTH

    def y(value: float) -> float:
        return top + (high - value) / (high - low) * (INNER_HEIGHT + TOP - top)

    parts = [grid_y(y(tick), _short(tick)) for tick in ticks]
    parts += [grid_x(x(step), f"{step:,.0f}") for step in (first, (first + last) / 2, last)]
    for place, (label, points) in enumerate(drawn.items()):
        kind = f"series s{place % SERIES}" + (" dashed" if place >= SERIES else "")
        shown = f"<title>{escape(label)}: {_point(points[-1])}</title>"
        if len(points) == 1:
            parts.append(
                f'<circle class="{kind}" cx="{x(points[0][0]):.1f}" cy="{y(points[0][1]):.1f}" r="3">{shown}</circle>'
            )
        else:
            path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
            parts.append(f'<polyline class="{kind}" points="{path}">{shown}</polyline>')
        left = LEFT + 4 + (place % columns) * (INNER_WIDTH // columns)
        line_y = TOP + 16 * (place // columns) + 4
        parts.append(
            f'<line class="{kind}" x1="{left}" y1="{line_y}" x2="{left + 16}" y2="{line_y}"/>'
            f'<text class="label" x="{left + 21}" y="{line_y + 4}">{escape(_cut(label, 2 * _SHORT // columns))}</text>'
        )
    described = "; ".join(
        f"{label}: from {_point(points[0])} to {_point(points[-1])}" for label, points in drawn.items()
    )
    return svg(name, title, described, parts, "optimizer step", "")


def _short(value: float) -> str:
    """A tick's label, which has the room of six characters."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and size > 1e3):
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _point(point: tuple[float, float]) -> str:
    step, value = point
    return f"{value:.4g} at step {step:.0f}"


def _cut(label: str, limit: int) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def _ticks(low: float, high: float) -> list[float]:
    """Round values from below the lowest to above the highest."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))
    start, stop = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [place * size for place in range(start, stop + 1)]
