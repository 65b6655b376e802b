"""JSON Lines and JSON lists: what is read, what is refused, and where rows are said to be."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import pytest

from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources.base import RawRow
from xrlhf.data.sources.json_files import (
    json_lines_chunks,
    json_lines_rows_hint,
    json_list_chunks,
    open_bytes,
    parse_line,
    starts_with_spread_object,
)
from xrlhf.errors import DataError

BOM = b"\xef\xbb\xbf"


def lines_of(path: Path, rows_per_chunk: int = 100, first_row: int = 0) -> list[RawRow]:
    return [row for chunk in json_lines_chunks(path, rows_per_chunk, first_row) for row in chunk.rows()]


def error_of(line: bytes) -> RowError:
    error = parse_line(line)
    assert isinstance(error, RowError)
    return error


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\n{"a": 2}',
        b'{"a": 1}\r\n{"a": 2}\r\n',
        BOM + b'{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\n{"a": 2}\n\n  \n',
        gzip.compress(b'{"a": 1}\n{"a": 2}\n', mtime=0),
        gzip.compress(BOM + b'{"a": 1}\r\n{"a": 2}\r\n', mtime=0),
        gzip.compress(b'{"a": 1}\n', mtime=0) + gzip.compress(b'{"a": 2}\n', mtime=0),
    ],
    ids=["plain", "no last newline", "crlf", "bom", "blank end", "gzip", "gzip bom crlf", "gzip in two members"],
)
def test_ways_to_write_json_lines(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "rows"
    path.write_bytes(data)
    assert lines_of(path) == [RawRow(0, f"{path}:1", {"a": 1}), RawRow(1, f"{path}:2", {"a": 2})]


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\n{"a": 1}\n\n\r\n{"a": 2}\n')
    for rows_per_chunk in (1, 2, 100):
        found = lines_of(path, rows_per_chunk, first_row=7)
        assert [(row.row, row.location) for row in found] == [(7, f"{path}:2"), (8, f"{path}:5")]


def test_a_broken_line_costs_one_row_and_keeps_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n{"a": 4}\n')
    found = lines_of(path)
    assert [row.row for row in found] == [0, 1, 2, 3]
    assert found[0].value == {"a": 1}
    assert found[3].value == {"a": 4}
    broken, wrong = found[1].value, found[2].value
    assert isinstance(broken, RowError)
    assert broken.reason is Reason.NOT_JSON
    assert broken.detail == "Expecting value (column 7)"
    assert found[1].location == f"{path}:2"
    assert isinstance(wrong, RowError)
    assert wrong.reason is Reason.NOT_AN_OBJECT
    assert wrong.detail == "the row is list; expected an object with named columns"


def test_what_can_be_wrong_with_a_line() -> None:
    assert error_of(b'{"a": "\xff"}').detail == "byte 0xff at position 8 is not UTF-8"
    assert error_of(b'{"a": 1} x').detail == "Extra data (column 10)"
    assert error_of(b"[" * 200_000).detail == "nested too deeply"
    assert error_of(b'{"a": ' + b"9" * 5000 + b"}").detail == "holds a number with too many digits"
    assert {error_of(line).reason for line in (b"\xff", b"{", b"[" * 200_000)} == {Reason.NOT_JSON}
    assert error_of(b"null").reason is Reason.NOT_AN_OBJECT


def test_no_text_of_a_row_gets_into_an_error() -> None:
    assert "secret" not in str(error_of(b'{"secret": "secret" "secret"}'))
    assert "secret" not in str(error_of(b'"secret"'))


def test_a_utf16_looking_line_is_not_guessed_at() -> None:
    assert error_of('{"a": 1}'.encode("utf-16-le")).reason is Reason.NOT_JSON


def test_chunks_hold_at_most_so_many_rows_and_survive_pickling(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"a": i}) + "\n" for i in range(10)))
    chunks = [pickle.loads(pickle.dumps(chunk)) for chunk in json_lines_chunks(path, 4, 100)]
    assert [(chunk.first_row, chunk.num_rows) for chunk in chunks] == [(100, 4), (104, 4), (108, 2)]
    assert [row.value["a"] for chunk in chunks for row in chunk.rows()] == list(range(10))


def test_long_lines_make_chunks_of_fewer_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"a": "x" * (3 << 20)}) + "\n" for _ in range(6)))
    # Three lines of 3 MiB are the first to reach the limit of 8 MiB.
    assert [chunk.num_rows for chunk in json_lines_chunks(path, 1000, 0)] == [3, 3]


def test_gzip_that_is_cut_off_is_named_after_the_rows_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress("".join(f'{{"a": {i * 7919}}}\n' for i in range(50_000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    seen: list[int] = []
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: the gzip data is cut off or damaged .*download it again"):
        seen.extend(chunk.num_rows for chunk in json_lines_chunks(path, 100, 0))
    assert 0 < sum(seen) < 50_000


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"\x1f\x8b" + b"nonsense" * 10)
    with pytest.raises(DataError, match="cut off or damaged"):
        lines_of(path)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"gone\.json: cannot be read \(No such file or directory\)"),
        open_bytes(tmp_path / "gone.json"),
    ):
        pass


def test_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(BOM + json.dumps([{"a": 1}, 2, {"a": 3}], indent=1).encode())
    found = [row for chunk in json_list_chunks(path, 2, 10) for row in chunk.rows()]
    assert [(row.row, row.location) for row in found] == [(10, f"{path}[0]"), (11, f"{path}[1]"), (12, f"{path}[2]")]
    assert found[0].value == {"a": 1}
    assert isinstance(found[1].value, RowError)
    assert found[1].value.reason is Reason.NOT_AN_OBJECT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"a": 1},\n {"a": ]', r"rows\.json:2: not valid JSON: Expecting value \(column 8\)$"),
        (b'[{"a": 1},\n', r"rows\.json:2: not valid JSON: .*; the file may be cut off"),
        (b'[{"a": 1}]\n[{"a": 2}]\n', r"rows\.json:2: the JSON list ends, yet text goes on; expected one list"),
        (b'[\n"\xe9"]', r"rows\.json:2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "a number with too many digits"),
    ],
    ids=["broken", "cut off", "two lists", "latin-1", "deep", "digits"],
)
def test_a_broken_list_leaves_nothing_to_go_on_with(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(json_list_chunks(path, 10, 0))


@pytest.mark.parametrize(
    ("head", "spread"),
    [
        (b'{"a": 1}\n{"a": 2}\n', False),
        (b'{\n  "a": 1\n}\n', True),
        (b'{"a": [\n1, 2]}\n', True),
        (b'{"a": 1}\n', False),
        (b'{"a": \n', False),
        (b'{"a": 1, "b": "cut off here\n{"a": 2}\n', False),
        (b'{"a": \n{"a": 2}\n', False),
        (b'{"a": 1}}\nnonsense\n', False),
        (b'{"a": "\xff"}\nnonsense\n', False),
    ],
    ids=["lines", "pretty", "half pretty", "one line", "one broken line", "cut string", "cut line", "junk", "latin-1"],
)
def test_an_object_over_several_lines_is_told_from_json_lines(head: bytes, spread: bool) -> None:
    assert starts_with_spread_object(head) is spread


def test_rows_hint(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": 2}')
    assert json_lines_rows_hint(path) == 2
    path.write_bytes(b'{"a": 12345}\n' * 200_000)
    assert json_lines_rows_hint(path) == pytest.approx(200_000, rel=1e-3)
    path.write_bytes(b"x" * (2 << 20))
    assert json_lines_rows_hint(path) is None
    path.write_bytes(gzip.compress(b'{"a": 1}\n'))
    assert json_lines_rows_hint(path) is None
