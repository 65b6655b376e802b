"""Consecutive rows joined, wherever the chunks of their source end."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import byte_tokenizer

from xrlhf.data.dataset import GroupDataset
from xrlhf.data.map_fns import helpsteer2_pair_map_fn
from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources import Chunk, JoinedRowsSource, MemorySource, Source, open_source
from xrlhf.data.sources.memory import ItemsChunk
from xrlhf.errors import ConfigError, DataError


class UnevenSource(MemorySource):
    """Rows in chunks of sizes that nobody asked for, as long lines of a file give."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__([{"n": number} for number in range(sum(sizes))])
        self.sizes = sizes

    def chunks(self, rows_per_chunk: int = 1024) -> Iterator[ItemsChunk]:
        for first, size in zip(itertools.accumulate([0, *self.sizes]), self.sizes, strict=False):
            yield ItemsChunk(self.name, self._items[first : first + size], first, first)


def numbers(value: Any) -> list[int]:
    return [row["n"] for row in value["rows"]]


def test_two_rows_become_one() -> None:
    source = JoinedRowsSource(MemorySource([{"n": number} for number in range(6)], "set"))
    assert isinstance(source, Source)
    rows = list(source.rows())
    assert [numbers(row.value) for row in rows] == [[0, 1], [2, 3], [4, 5]]
    assert [(row.row, row.location) for row in rows] == [(0, "set[0]"), (1, "set[2]"), (2, "set[4]")]
    assert source.name == "set"
    assert source.num_rows_hint() == 3
    assert [numbers(row.value) for row in source.rows(1, 2)] == [[2, 3]]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=8), st.integers(2, 4))
def test_wherever_chunks_end(sizes: list[int], count: int) -> None:
    """Every row comes once and in order; chunks cross a process border; numbers run on."""
    source = JoinedRowsSource(UnevenSource(sizes), count=count)
    chunks: list[Chunk] = [pickle.loads(pickle.dumps(chunk)) for chunk in source.chunks()]
    rows = [row for chunk in chunks for row in chunk.rows()]
    total = sum(sizes)
    whole = [list(range(first, first + count)) for first in range(0, total - count + 1, count)]
    assert [numbers(row.value) for row in rows if not isinstance(row.value, RowError)] == whole
    assert [row.row for row in rows] == list(range(-(-total // count)))
    assert [chunk.first_row for chunk in chunks] == [
        sum(chunk.num_rows for chunk in chunks[:index]) for index in range(len(chunks))
    ]
    left_over = [row for row in rows if isinstance(row.value, RowError)]
    assert len(left_over) == (total % count > 0)


def test_a_row_left_over_is_bad() -> None:
    (_, last) = JoinedRowsSource(MemorySource([{"n": 0}, {"n": 1}, {"n": 2}])).rows()
    assert isinstance(last.value, RowError)
    assert (last.value.reason, last.value.detail) == (
        Reason.MISSING_COLUMN,
        "the source ends after 1 of 2 rows that belong together",
    )


def test_a_broken_line_spoils_its_own_pair_only(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"n": 0}\n{"n": 1}\n{"n": 2}\n{"n": \n{"n": 4}\n{"n": 5}\n')
    first, broken, last = JoinedRowsSource(str(file)).rows()
    assert (numbers(first.value), numbers(last.value)) == ([0, 1], [4, 5])
    assert isinstance(broken.value, RowError)
    assert (broken.value.reason, broken.location) == (Reason.NOT_JSON, f"{file}:4")


def test_the_fingerprint_knows_rows_and_count(tmp_path: Path) -> None:
    rows = [{"n": number} for number in range(6)]
    two, three = JoinedRowsSource(MemorySource(rows)), JoinedRowsSource(MemorySource(rows), count=3)
    prints = {two.fingerprint(), three.fingerprint(), MemorySource(rows).fingerprint()}
    assert len(prints) == 3
    assert JoinedRowsSource(MemorySource(rows)).fingerprint(tmp_path) == two.fingerprint()


@pytest.mark.parametrize("kind", [JoinedRowsSource, "JoinedRowsSource"])
def test_as_a_recipe_names_it(kind: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"n": 0}\n{"n": 1}\n{"n": 2}\n')
    source = open_source({"type": kind, "source": {"path": str(file)}, "count": 3})
    assert [numbers(row.value) for row in source.rows()] == [[0, 1, 2]]


@pytest.mark.parametrize("count", [1, 0, True, 2.0, "2"])
def test_counts_that_join_nothing(count: Any) -> None:
    with pytest.raises(ConfigError, match="expected a whole number of 2 or more"):
        JoinedRowsSource(MemorySource([{}]), count=count)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        JoinedRowsSource(str(tmp_path / "nowhere.jsonl"))


def test_pairs_of_rated_rows_reach_a_data_set(tmp_path: Path) -> None:
    def rated(prompt: str, response: str, helpfulness: int) -> dict[str, Any]:
        others = {"correctness": 2, "coherence": 4, "complexity": 1, "verbosity": 1}
        return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **others}

    rows = [rated("q", "poor", 0), rated("q", "good", 3), rated("r", "one", 2), rated("r", "two", 2)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = GroupDataset(
        [
            {
                "source": {"type": JoinedRowsSource, "source": str(file)},
                "map_fn": {"type": helpsteer2_pair_map_fn, "ratings": True},
            }
        ],
        tokenizer=byte_tokenizer(),
        max_length=200,
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(dataset) == 1
    (group,) = [dataset[0]]
    assert group.ratings is not None
    assert group.ratings.tolist() == [3.0, 0.0]
    assert dataset.tables[0].report.reasons == {"tie": 1}
    assert dataset.tables[0].report.examples[0].location == f"{file}:3"
