"""The reward that both sides of the benchmark of reinforcement learning give."""

from __future__ import annotations

from typing import Any

__all__ = ["share_of_even"]


def share_of_even(completion_ids: list[list[int]], **given: Any) -> list[float]:
    """The share of even token ids of each answer: costs nothing, and differs between answers."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
