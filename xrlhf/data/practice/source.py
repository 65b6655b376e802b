"""The practice data as a source of rows, drawn by whoever parses them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xrlhf.data.practice import generate, phrases, rule, world
from xrlhf.data.practice.generate import group_row, practice_group, response_sizes
from xrlhf.data.sources.base import DEFAULT_ROWS_PER_CHUNK, RawRow, check_rows_per_chunk, rows_between
from xrlhf.data.sources.fingerprint import combine
from xrlhf.errors import ConfigError
from xrlhf.registry import SOURCES

__all__ = ["PracticeChunk", "PracticeSource"]


@dataclass(frozen=True)
class PracticeChunk:
    """Rows ``first_row`` to ``first_row + num_rows`` of the practice data, not drawn yet."""

    name: str
    first_row: int
    num_rows: int
    seed: int
    num_responses: tuple[int, ...]
    part: str

    def rows(self) -> Iterator[RawRow]:
        for row in range(self.first_row, self.first_row + self.num_rows):
            group = practice_group(row, self.seed, self.num_responses, self.part)
            yield RawRow(row, f"{self.name}[{row}]", group_row(group))


@SOURCES.register_module()
class PracticeSource:
    """Ranked answers of the practice task; ``ranked_map_fn`` reads its rows.

    Args:
        part: ``"train"`` or ``"held_out"``; no prompt is in both.
        num_groups: Number of rows.
        seed: Another seed draws other rows of the same part.
        num_responses: Answers to each prompt, or several numbers to draw from.

    Raises:
        ConfigError: An option has a value that is not accepted.
    """

    def __init__(
        self, part: str = "train", num_groups: int = 4000, seed: int = 0, num_responses: int | Sequence[int] = 2
    ) -> None:
        if num_groups < 1:
            raise ConfigError(f"practice data: num_groups={num_groups!r} must be at least 1")
        self.part = part
        self.num_groups = num_groups
        self.seed = seed
        self.num_responses = response_sizes(num_responses)
        self.name = f"practice_{part}"
        # Draws one row, so that a wrong option is said here.
        practice_group(0, seed, self.num_responses, part)

    def fingerprint(self, cache_dir: Path | None = None) -> str:
        # The rows follow from the code that draws them, so the code stands for the content.
        code = [inspect.getsource(module) for module in (generate, phrases, rule, world)]
        return combine([*code, self.part, str(self.num_groups), str(self.seed), str(self.num_responses)])

    def num_rows_hint(self) -> int | None:
        return self.num_groups

    def chunks(self, rows_per_chunk: int = DEFAULT_ROWS_PER_CHUNK) -> Iterator[PracticeChunk]:
        check_rows_per_chunk(rows_per_chunk)
        for first in range(0, self.num_groups, rows_per_chunk):
            num_rows = min(rows_per_chunk, self.num_groups - first)
            yield PracticeChunk(self.name, first, num_rows, self.seed, self.num_responses, self.part)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[RawRow]:
        return rows_between(self.chunks(), start, stop)
