"""Reward functions as a user would write them."""

from __future__ import annotations

from typing import Any


def by_length(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(len(c if isinstance(c, str) else c[0]["content"])) for c in completions]


def is_right(prompts: list[Any], completions: list[Any], answer: list[str]) -> list[float | None]:
    return [
        None if wanted is None else float(completion[0]["content"] == wanted)
        for completion, wanted in zip(completions, answer, strict=True)
    ]


async def later(completions: list[Any]) -> list[float]:
    return [1.0] * len(completions)


NOT_A_FUNCTION = 3
