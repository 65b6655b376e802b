"""Parts of plots as SVG that stands inside a page: colours and text follow its style, nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = [
    "BOTTOM",
    "HEIGHT",
    "INNER_HEIGHT",
    "INNER_WIDTH",
    "LEFT",
    "RIGHT",
    "TOP",
    "WIDTH",
    "grid_x",
    "grid_y",
    "line",
    "svg",
]

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40
INNER_WIDTH, INNER_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM


def svg(
    name: str, title: str, described: str, parts: Sequence[str], x_label: str, y_label: str, height: int = HEIGHT
) -> str:
    labels = []
    if x_label:
        labels.append(
            f'<text class="label" x="{LEFT + INNER_WIDTH / 2}" y="{height - 6}" text-anchor="middle">'
            f"{escape(x_label)}</text>"
        )
    if y_label:
        middle = TOP + INNER_HEIGHT / 2
        labels.append(
            f'<text class="label" x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">'
            f"{escape(y_label)}</text>"
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(described)}</desc>'
        f"{''.join(parts)}{''.join(labels)}</svg>"
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def grid_x(x: float, label: str, bottom: float = HEIGHT - BOTTOM) -> str:
    # A long label in the middle of the right edge would be cut off there.
    anchor = "end" if x > WIDTH - RIGHT - 1 and len(label) > 3 else "middle"
    text = f'<text class="tick" x="{x:.1f}" y="{bottom + 15:.1f}" text-anchor="{anchor}">{escape(label)}</text>'
    return line(x, TOP, x, bottom, "grid") + text


def grid_y(y: float, label: str) -> str:
    text = f'<text class="tick" x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
    return line(LEFT, y, WIDTH - RIGHT, y, "grid") + text
