"""Pages of HTML that load nothing: their style, their plots, and what renders them."""

from __future__ import annotations

from xrlhf.pages.rendering import count, number, render, signed

__all__ = ["count", "number", "render", "signed"]
