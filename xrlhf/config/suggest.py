"""Nearest names for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest", "nearest_clause"]


def nearest(name: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """The names most like ``name``, the best first; empty where none is near."""
    return difflib.get_close_matches(name, sorted(set(names)), n=limit, cutoff=0.6)


def nearest_clause(name: str, names: Iterable[str], limit: int = 3) -> str:
    """``"; nearest: 'a', 'b'"`` to end an error message with, or an empty string where none is near."""
    found = nearest(name, names, limit)
    return "; nearest: " + ", ".join(repr(n) for n in found) if found else ""
