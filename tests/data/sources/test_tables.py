"""Parquet files and Arrow chunks."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources.base import RawRow
from xrlhf.data.sources.tables import arrow_chunk, parquet_chunks, parquet_num_rows
from xrlhf.errors import DataError

ROWS = [
    {"chosen": [{"role": "user", "content": "a"}], "n": 1, "score-a": 0.5},
    {"chosen": [], "n": 2, "score-a": None},
    {"chosen": [{"role": "user", "content": None}, {"role": "tool", "content": "ü"}], "n": 3, "score-a": 1.5},
]


def test_rows_of_a_parquet_file_with_several_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
    chunks = [pickle.loads(pickle.dumps(chunk)) for chunk in parquet_chunks(path, 2, 40)]
    rows = [row for chunk in chunks for row in chunk.rows()]
    assert rows == [RawRow(40 + index, f"{path}[{index}]", row) for index, row in enumerate(ROWS)]
    assert [chunk.first_row for chunk in chunks] == [40, 42]
    assert parquet_num_rows(path) == 3


def test_a_chunk_of_a_slice_carries_that_slice_only() -> None:
    table = pa.Table.from_pylist([{"text": "x" * 1000} for _ in range(1000)])
    assert len(pickle.dumps(arrow_chunk(table.slice(10, 2), "t", 10, 10))) < 5000


def test_json_text_inside_arrow_becomes_objects() -> None:
    """Columns of mixed type are kept as JSON text: plain, in a list, in a struct in a list."""
    kind = pa.json_(pa.string())
    schema = pa.schema(
        [
            ("plain", kind),
            ("list", pa.list_(kind)),
            ("parts", pa.list_(pa.struct([("role", pa.string()), ("c", kind)]))),
        ]
    )
    columns = [
        pa.array(['{"a": [1]}', None], pa.string()).cast(kind),
        pa.ListArray.from_arrays([0, 2, 2], pa.array(["1", '"b"'], pa.string()).cast(kind), pa.list_(kind)),
        pa.ListArray.from_arrays(
            [0, 1, 1],
            pa.StructArray.from_arrays(
                [pa.array(["user"]), pa.array(['[{"type": "text"}]'], pa.string()).cast(kind)],
                fields=[pa.field("role", pa.string()), pa.field("c", kind)],
            ),
        ),
    ]
    rows = [row.value for row in arrow_chunk(pa.table(columns, schema=schema), "t", 0, 0).rows()]
    assert rows == [
        {"plain": {"a": [1]}, "list": [1, "b"], "parts": [{"role": "user", "c": [{"type": "text"}]}]},
        {"plain": None, "list": [], "parts": []},
    ]


def test_json_text_that_does_not_parse_is_an_error_of_its_row() -> None:
    kind = pa.json_(pa.string())
    table = pa.table({"a": pa.array(["{", "1"], pa.string()).cast(kind), "other": ["x", "y"]})
    first, second = (row.value for row in arrow_chunk(table, "t", 0, 0).rows())
    assert isinstance(first, RowError)
    assert first.reason is Reason.NOT_JSON
    assert second == {"a": 1, "other": "y"}


def test_a_file_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"rows\.parquet: not a readable Parquet file \(.*download it again"):
        list(parquet_chunks(path, 10, 0))
    with pytest.raises(DataError, match="not a readable Parquet file"):
        parquet_num_rows(path)
