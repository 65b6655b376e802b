"""Rows given as a list."""

from __future__ import annotations

import pytest

from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources import MemorySource, Source
from xrlhf.data.sources.memory import ItemsChunk
from xrlhf.errors import DataError


def test_rows_and_places() -> None:
    source = MemorySource([{"a": i} for i in range(5)], name="toy")
    assert isinstance(source, Source)
    assert [(row.row, row.location, row.value) for row in source.rows()] == [
        (i, f"toy[{i}]", {"a": i}) for i in range(5)
    ]
    assert [chunk.num_rows for chunk in source.chunks(2)] == [2, 2, 1]
    assert [row.row for row in source.rows(1, 3)] == [1, 2]
    assert source.num_rows_hint() == 5


def test_the_fingerprint_follows_content_and_order() -> None:
    one = MemorySource([{"a": 1, "b": 2}, {"a": 3}])
    assert one.fingerprint() == MemorySource([{"b": 2, "a": 1}, {"a": 3}], name="other").fingerprint()
    assert one.fingerprint() != MemorySource([{"a": 3}, {"a": 1, "b": 2}]).fingerprint()


def test_no_rows_and_rows_beyond_json() -> None:
    with pytest.raises(DataError, match="toy: zero rows"):
        MemorySource([], name="toy")
    with pytest.raises(DataError, match="toy: a row holds what JSON cannot"):
        MemorySource([{"a": object()}], name="toy").fingerprint()


def test_chunk_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rows_per_chunk is 0; expected 1 or more"):
        list(MemorySource([{}]).chunks(0))


def test_an_item_that_is_no_object() -> None:
    (row,) = ItemsChunk("toy", ["text"], 4, 0).rows()
    assert isinstance(row.value, RowError)
    assert row.value.reason is Reason.NOT_AN_OBJECT
