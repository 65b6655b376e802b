"""Parts that the recipes of these tests import and build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Optional


class RankingLoss:
    def __init__(self, gamma: float = 1.0, margin: float | None = None, name: str = "ranking") -> None:
        self.gamma = gamma
        self.margin = margin
        self.name = name

    class Nested:
        pass


class Trainer:
    def __init__(
        self,
        loss: Any,
        steps: int,
        clip: Optional[float] = 1.0,  # noqa: UP045 - the older spelling is read too
        shuffle: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        scale=2,
        callback: Callable[[], None] | None = None,
    ) -> None:
        self.arguments = (loss, steps, clip, shuffle, betas, scale, callback)

    @classmethod
    def from_name(cls, name: str, **kwargs: Any) -> Trainer:
        raise NotImplementedError


class WithPlainDicts:
    def __init__(self, options: Mapping[str, Any] | None = None, part: RankingLoss | Mapping[str, Any] | None = None):
        self.arguments = (options, part)


class FastTrainer(Trainer):
    pass


def map_row(row: dict[str, Any], column: str = "text") -> str:
    return row[column]


def make_local() -> type:
    class Local:
        pass

    return Local


renamed = partial(map_row, column="x")


def impostor() -> None:
    """Says it is map_row."""


impostor.__qualname__ = "map_row"
CONSTANT = {"not": object()}
