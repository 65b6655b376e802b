"""The practice data as a source of rows, drawn by whoever parses them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xrlhf.data.practice import generate, phrases, rule, world
from xrlhf.data.practice.generate import group_row, practice_group, practice_rated_group, response_sizes
from xrlhf.data.sources.base import DEFAULT_ROWS_PER_CHUNK, RawRow, check_rows_per_chunk, rows_between
from xrlhf.data.sources.fingerprint import combine
from xrlhf.errors import ConfigError
from xrlhf.registry import SOURCES
from xrlhf.structures import Group

__all__ = ["KINDS", "PracticeChunk", "PracticeSource", "practice_rated_map_fn"]

_DRAWN_BY: dict[str, Callable[..., Group]] = {"ranked": practice_group, "rated": practice_rated_group}
KINDS = tuple(_DRAWN_BY)


@dataclass(frozen=True)
class PracticeChunk:
    """Rows ``first_row`` to ``first_row + num_rows`` of the practice data, not drawn yet."""

    name: str
    first_row: int
    num_rows: int
    seed: int
    num_responses: tuple[int, ...]
    part: str
    kind: str = "ranked"

    def rows(self) -> Iterator[RawRow]:
        for row in range(self.first_row, self.first_row + self.num_rows):
            group = _DRAWN_BY[self.kind](row, self.seed, self.num_responses, self.part)
            yield RawRow(row, f"{self.name}[{row}]", group_row(group))


@SOURCES.register_module()
class PracticeSource:
    """Answers of the practice task; ``ranked_map_fn`` and :func:`practice_rated_map_fn` read its rows.

    Args:
        part: ``"train"`` or ``"held_out"``; no prompt is in both.
        num_groups: Number of rows.
        seed: Another seed draws other rows of the same part.
        num_responses: Answers to each prompt, or several numbers to draw from; for ``"rated"`` one is enough.
        kind: ``"ranked"`` for answers whose ratings are all at least two points apart, to learn an order from;
            ``"rated"`` for answers as they come, with their attributes, to learn ratings from.

    Raises:
        ConfigError: An option has a value that is not accepted.
    """

    def __init__(
        self,
        part: str = "train",
        num_groups: int = 4000,
        seed: int = 0,
        num_responses: int | Sequence[int] = 2,
        kind: str = "ranked",
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(f"practice data: kind={kind!r} must be one of {', '.join(KINDS)}")
        if num_groups < 1:
            raise ConfigError(f"practice data: num_groups={num_groups!r} must be at least 1")
        self.part = part
        self.num_groups = num_groups
        self.seed = seed
        self.kind = kind
        self.num_responses = response_sizes(num_responses, minimum=1 if kind == "rated" else 2)
        self.name = f"practice_{part}"
        # Draws one row, so that a wrong option is said here.
        _DRAWN_BY[kind](0, seed, self.num_responses, part)

    def fingerprint(self, cache_dir: Path | None = None) -> str:
        # The rows follow from the code that draws them, so the code stands for the content.
        code = [inspect.getsource(module) for module in (generate, phrases, rule, world)]
        return combine([*code, self.part, str(self.num_groups), str(self.seed), str(self.num_responses), self.kind])

    def num_rows_hint(self) -> int | None:
        return self.num_groups

    def chunks(self, rows_per_chunk: int = DEFAULT_ROWS_PER_CHUNK) -> Iterator[PracticeChunk]:
        check_rows_per_chunk(rows_per_chunk)
        for first in range(0, self.num_groups, rows_per_chunk):
            num_rows = min(rows_per_chunk, self.num_groups - first)
            yield PracticeChunk(self.name, first, num_rows, self.seed, self.num_responses, self.part, self.kind)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[RawRow]:
        return rows_between(self.chunks(), start, stop)


def practice_rated_map_fn(row: Mapping[str, Any]) -> Group:
    """A row of the practice data with its ratings and attributes, single answers and ties included."""
    attributes = {name: tuple(values) for name, values in (row.get("attributes") or {}).items()}
    return Group(row["prompt"], tuple(row["responses"]), tuple(row["ratings"]), attributes=attributes or None)
