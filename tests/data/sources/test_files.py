"""Data files: which are found, what they are taken for, and that every way to write rows reads back the same."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xrlhf.data.sources import FilesSource, RawRow, Source
from xrlhf.data.sources.files import FileKind, find_files, sniff
from xrlhf.errors import DataError

Row = dict[str, Any]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def archive(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as file:
            file.writestr("rows.jsonl", '{"a": 1}\n')
    else:
        with tarfile.open(fileobj=stream, mode=kind) as tar:  # type: ignore[call-overload]
            member = tarfile.TarInfo("rows.jsonl")
            member.size = 9
            tar.addfile(member, io.BytesIO(b'{"a": 1}\n'))
    return stream.getvalue()


def parquet(rows: list[Row]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


class TestSniff:
    """A file is what its content says, whatever it is called."""

    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (b'{"a": 1}\n{"a": 2}\n', FileKind.JSON_LINES),
            (b'\n \n{"a": 1}', FileKind.JSON_LINES),
            (b"a broken first line\n{}\n", FileKind.JSON_LINES),
            (codecs.BOM_UTF8 + b'{"a": 1}\n', FileKind.JSON_LINES),
            (b'  [{"a": 1}]', FileKind.JSON_LIST),
            (codecs.BOM_UTF8 + b"\r\n[]", FileKind.JSON_LIST),
            (gzip.compress(b'[{"a": 1}]', mtime=0), FileKind.JSON_LIST),
            (b'{"a": "' + b"x" * (2 << 20) + b'"}\n', FileKind.JSON_LINES),
            (parquet([{"a": 1}]), FileKind.PARQUET),
        ],
    )
    def test_kinds(self, tmp_path: Path, data: bytes, kind: FileKind) -> None:
        assert sniff(write(tmp_path / "rows.json", data)) is kind

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "zero rows; the file is empty"),
            (b" \n\r\n\t", "zero rows; the file is empty"),
            (codecs.BOM_UTF8, "zero rows; the file is empty"),
            (gzip.compress(b"", mtime=0), "zero rows; the file is empty"),
            (b'{\n "data": [\n  {"a": 1}\n ]\n}\n', "begins with one object spread over several lines; expected one"),
            ('{"a": 1}\n'.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
            (b"\x00\x01\x02\x03", "is binary, not text"),
            (bz2.compress(b"{}"), "is compressed with bzip2; decompress it"),
            (lzma.compress(b"{}"), "is compressed with xz; decompress it"),
            (b"\x28\xb5\x2f\xfd1234", "is compressed with Zstandard; decompress it"),
            (archive("zip"), "is a zip archive; unpack it"),
            (archive("w"), "is a tar archive; unpack it"),
            (archive("w:gz"), "is a tar archive; unpack it"),
            (gzip.compress(parquet([{"a": 1}]), mtime=0), "is a Parquet file inside gzip; decompress it"),
            (b"ARROW1\x00\x00", "is a lone Arrow file; name the folder"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer, not the data"),
        ],
    )
    def test_files_that_hold_no_rows(self, tmp_path: Path, data: bytes, message: str) -> None:
        path = write(tmp_path / "rows.jsonl", data)
        with pytest.raises(DataError) as caught:
            sniff(path)
        assert str(caught.value).startswith(f"{path}: {message}")
        assert "\n" not in str(caught.value)

    def test_the_cut_of_the_sample_is_not_taken_for_the_end_of_an_object(self, tmp_path: Path) -> None:
        """The sample of 1 MiB ends within the second line, and the first line is broken at its end."""
        data = b'{"a": \n{"a": "' + b"x" * (1 << 20) + b'"}\n'
        assert sniff(write(tmp_path / "rows.jsonl", data)) is FileKind.JSON_LINES


class TestFindFiles:
    """Which files a path, a folder, a glob or a list names, and in which order."""

    def test_numbers_in_names_count_as_numbers(self, tmp_path: Path) -> None:
        for name in ("part-10.jsonl", "part-2.jsonl", "part-1.jsonl"):
            write(tmp_path / name, "{}")
        expected = [tmp_path / name for name in ("part-1.jsonl", "part-2.jsonl", "part-10.jsonl")]
        assert find_files(tmp_path) == expected
        assert find_files(str(tmp_path / "part-*.jsonl")) == expected

    def test_a_list_keeps_its_order_and_may_hold_folders_and_globs(self, tmp_path: Path) -> None:
        for name in ("b.jsonl", "a.jsonl", "deep/c.json", "deep/er/d.json.gz"):
            write(tmp_path / name, "{}")
        found = find_files([tmp_path / "b.jsonl", str(tmp_path / "deep"), str(tmp_path / "a*")])
        assert [path.name for path in found] == ["b.jsonl", "c.json", "d.json.gz", "a.jsonl"]

    def test_a_folder_is_searched_for_data_files_only(self, tmp_path: Path) -> None:
        for name in ("README.md", ".hidden.jsonl", ".git/x.jsonl", "rows.JSONL", "rows.csv"):
            write(tmp_path / name, "{}")
        assert [path.name for path in find_files(tmp_path)] == ["rows.JSONL"]

    def test_a_path_with_glob_characters_that_exists_is_that_path(self, tmp_path: Path) -> None:
        path = write(tmp_path / "rows[1].jsonl", "{}")
        write(tmp_path / "rows1.jsonl", "{}")
        assert find_files(path) == [path]

    def test_home_is_expanded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        path = write(tmp_path / "rows.jsonl", "{}")
        assert find_files("~/rows.jsonl") == [path]

    @pytest.mark.parametrize("name", ["train", "training"])
    def test_splits_are_told_by_file_and_folder_names(self, tmp_path: Path, name: str) -> None:
        for file in ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"):
            write(tmp_path / file, "x")
        (found,) = find_files(tmp_path, split=name)
        assert found.name.startswith("train")

    @pytest.mark.parametrize(
        ("files", "split", "chosen"),
        [
            (["train/a.jsonl", "test/a.jsonl"], "test", ["test/a.jsonl"]),
            (["x.train.jsonl", "x_dev.jsonl"], "validation", ["x_dev.jsonl"]),
            (
                ["train_prefs-00000-of-00001.parquet", "train_sft-00000-of-00001.parquet"],
                "train_prefs",
                ["train_prefs-00000-of-00001.parquet"],
            ),
        ],
    )
    def test_more_ways_to_name_a_split(self, tmp_path: Path, files: list[str], split: str, chosen: list[str]) -> None:
        for file in files:
            write(tmp_path / file, "x")
        assert find_files(tmp_path, split=split) == [tmp_path / name for name in chosen]

    def test_a_word_inside_another_is_no_split(self, tmp_path: Path) -> None:
        for file in ("contest.jsonl", "latest-results.jsonl"):
            write(tmp_path / file, "x")
        assert len(find_files(tmp_path)) == 2

    def test_train_and_test_files_are_never_read_together_unasked(self, tmp_path: Path) -> None:
        for file in ("train-1.jsonl", "train-2.jsonl", "test-1.jsonl", "more.jsonl"):
            write(tmp_path / file, "{}")
        with pytest.raises(DataError, match=r"files of several splits, train \(2\), .*test \(1\).*; choose one"):
            find_files(tmp_path)
        with pytest.raises(DataError, match=r"no file name tells split 'dev'; found files of train \(2\)"):
            find_files(tmp_path, split="dev")

    def test_a_folder_with_the_same_rows_in_two_formats(self, tmp_path: Path) -> None:
        write(tmp_path / "rows.jsonl", "{}")
        write(tmp_path / "rows.parquet", "x")
        with pytest.raises(DataError, match="1 JSON, 1 Parquet files, perhaps the same rows twice; choose with a glob"):
            find_files(tmp_path)

    def test_a_file_named_twice(self, tmp_path: Path) -> None:
        path = write(tmp_path / "rows.jsonl", "{}")
        with pytest.raises(DataError, match=r"rows\.jsonl: named twice, by '.*rows\.jsonl' and by '.*\*\.jsonl'"):
            find_files([path, str(tmp_path / "*.jsonl")])

    def test_nothing_to_find(self, tmp_path: Path) -> None:
        write(tmp_path / "readme.txt", "x")
        with pytest.raises(DataError, match=r"no data files in this folder; looked for \.jsonl, "):
            find_files(tmp_path)
        with pytest.raises(DataError, match=r"\*\.jsonl: no file matches; .* holds readme\.txt$"):
            find_files(str(tmp_path / "*.jsonl"))
        with pytest.raises(DataError, match="the list of data files is empty"):
            find_files([])
        with pytest.raises(DataError, match="a path of a data file is empty"):
            find_files([""])

    def test_a_missing_file_names_its_neighbours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "data" / "harmless.jsonl", "{}")
        write(tmp_path / "data" / "zzz.txt", "{}")
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path)
        for spec, message in (
            ("data/harmles.jsonl", "data/harmles.jsonl: not found; nearest in data: harmless.jsonl"),
            ("data/0", "data/0: not found; data holds harmless.jsonl, zzz.txt"),
            ("date/harmless.jsonl", "not found; there is no folder date; nearest in the working directory: data"),
            ("empty/rows.jsonl", "empty/rows.jsonl: not found; empty is empty"),
            ("/no-such-root/a/b.jsonl", "there is no folder /no-such-root/a; "),
        ):
            with pytest.raises(DataError) as caught:
                find_files(spec)
            assert message in str(caught.value)

    def test_many_neighbours_are_counted(self, tmp_path: Path) -> None:
        for index in range(9):
            write(tmp_path / f"{index}.x", "")
        with pytest.raises(DataError, match=r"holds 0\.x, 1\.x, 2\.x, 3\.x, 4\.x and 4 more$"):
            find_files(tmp_path / "something-else")

    def test_a_split_of_a_single_file(self, tmp_path: Path) -> None:
        path = write(tmp_path / "rows.jsonl", "{}")
        with pytest.raises(DataError, match="split='train' chooses among the files of a folder, but this is not a"):
            find_files(path, split="train")


class TestFilesSource:
    """Several files of several kinds as one source."""

    @pytest.fixture
    def mixed(self, tmp_path: Path) -> list[Path]:
        return [
            write(tmp_path / "a.jsonl", '{"a": 0}\nbroken\n{"a": 2}\n'),
            write(tmp_path / "b.json", '[{"a": 3}, {"a": 4}]'),
            write(tmp_path / "c.parquet", parquet([{"a": 5}])),
            write(tmp_path / "d.jsonl.gz", gzip.compress(b'{"a": 6}\n')),
        ]

    def test_row_numbers_run_on_through_files(self, mixed: list[Path]) -> None:
        source = FilesSource(mixed)
        assert isinstance(source, Source)
        assert source.name == f"{mixed[0]} and 3 more"
        rows = list(source.rows())
        a, b, c, d = mixed
        places = [f"{a}:1", f"{a}:2", f"{a}:3", f"{b}[0]", f"{b}[1]", f"{c}[0]", f"{d}:1"]
        assert [(row.row, row.location) for row in rows] == list(enumerate(places))
        assert [row.value["a"] for row in rows if row.row != 1] == [0, 2, 3, 4, 5, 6]

    @pytest.mark.parametrize("rows_per_chunk", [1, 2, 3, 100])
    def test_chunks_hold_the_same_rows_whatever_their_size(self, mixed: list[Path], rows_per_chunk: int) -> None:
        source = FilesSource(mixed)
        found = [row for chunk in source.chunks(rows_per_chunk) for row in chunk.rows()]
        assert [str(row) for row in found] == [str(row) for row in source.rows()]
        assert all(chunk.num_rows <= rows_per_chunk for chunk in source.chunks(rows_per_chunk))

    def test_a_range_of_rows(self, mixed: list[Path]) -> None:
        assert [row.row for row in FilesSource(mixed).rows(2, 6)] == [2, 3, 4, 5]
        assert [row.row for row in FilesSource(mixed).rows(6)] == [6]
        assert [row.row for row in FilesSource(mixed).rows(7)] == []

    def test_hint(self, mixed: list[Path]) -> None:
        assert FilesSource([mixed[0], mixed[2]]).num_rows_hint() == 4
        assert FilesSource(mixed).num_rows_hint() is None

    def test_the_fingerprint_follows_content_and_order_not_names(self, mixed: list[Path], tmp_path: Path) -> None:
        moved = write(tmp_path / "elsewhere" / "z.jsonl", mixed[0].read_bytes())
        assert FilesSource(mixed[0]).fingerprint() == FilesSource(moved).fingerprint()
        assert FilesSource(mixed).fingerprint() != FilesSource(mixed[::-1]).fingerprint()
        before = FilesSource(moved).fingerprint()
        write(moved, '{"a": 0}\nbroken\n{"a": 3}\n')
        assert FilesSource(moved).fingerprint() != before

    def test_names(self, mixed: list[Path], tmp_path: Path) -> None:
        assert FilesSource(mixed[0]).name == str(mixed[0])
        assert FilesSource([mixed[0]]).name == str(mixed[0])
        assert FilesSource(str(tmp_path / "*.jsonl")).name == str(tmp_path / "*.jsonl")
        write(tmp_path / "split" / "train.jsonl", "{}")
        assert FilesSource(tmp_path / "split", split="train").name == f"{tmp_path / 'split'} (train)"

    def test_a_file_without_rows_among_others(self, mixed: list[Path], tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"empty\.json: zero rows$"):
            list(FilesSource([mixed[0], write(tmp_path / "empty.json", "[]")]).rows())
        with pytest.raises(DataError, match=r"empty\.parquet: zero rows$"):
            list(FilesSource(write(tmp_path / "empty.parquet", parquet([{"a": 1}][:0]))).rows())

    def test_chunk_size_must_be_positive(self, mixed: list[Path]) -> None:
        with pytest.raises(ValueError, match="rows_per_chunk is 0"):
            list(FilesSource(mixed).chunks(0))


json_text = st.text(max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | json_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(json_text, inner, max_size=3),
    max_leaves=6,
)
json_rows = st.lists(st.dictionaries(json_text, json_values, max_size=4), min_size=1, max_size=12)


def read_back(name: str, data: bytes, rows_per_chunk: int) -> list[RawRow]:
    with TemporaryDirectory() as folder:
        path = write(Path(folder) / name, data)
        return [row for chunk in FilesSource(path).chunks(rows_per_chunk) for row in chunk.rows()]


@settings(max_examples=60, deadline=None)
@given(
    rows=json_rows,
    as_list=st.booleans(),
    indent=st.sampled_from([None, 1]),
    escape=st.booleans(),
    end=st.sampled_from(["", "\n", "\r\n", "\n\n"]),
    line_end=st.sampled_from(["\n", "\r\n", "\n \n"]),
    mark=st.booleans(),
    compress=st.booleans(),
    rows_per_chunk=st.integers(1, 5),
)
def test_json_rows_read_back_however_they_were_written(
    rows: list[Row],
    as_list: bool,
    indent: int | None,
    escape: bool,
    end: str,
    line_end: str,
    mark: bool,
    compress: bool,
    rows_per_chunk: int,
) -> None:
    if as_list:
        text = json.dumps(rows, ensure_ascii=escape, indent=indent) + end
    else:
        text = line_end.join(json.dumps(row, ensure_ascii=escape) for row in rows) + end
    data = (codecs.BOM_UTF8 if mark else b"") + text.encode()
    found = read_back("rows", gzip.compress(data) if compress else data, rows_per_chunk)
    assert [row.value for row in found] == rows
    assert [row.row for row in found] == list(range(len(rows)))


message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.none() | json_text})
table_row = st.fixed_dictionaries(
    {
        "chosen": st.lists(message, max_size=3),
        "rejected": json_text,
        "score-a": st.none() | st.floats(allow_nan=False),
        "n": st.integers(-(2**63), 2**63 - 1),
        "ok": st.booleans(),
    }
)
table_schema = pa.schema(
    [
        ("chosen", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("rejected", pa.string()),
        ("score-a", pa.float64()),
        ("n", pa.int64()),
        ("ok", pa.bool_()),
    ]
)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(table_row, min_size=1, max_size=12), group=st.integers(1, 12), rows_per_chunk=st.integers(1, 5))
def test_parquet_rows_read_back(rows: list[Row], group: int, rows_per_chunk: int) -> None:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=table_schema), stream, row_group_size=group)
    found = read_back("rows.parquet", stream.getvalue(), rows_per_chunk)
    assert [row.value for row in found] == rows
    assert [row.row for row in found] == list(range(len(rows)))


def test_every_real_file_is_read_whole(shared_data: Path) -> None:
    """Row counts as the data sets' own description gives them."""
    counts = {
        "hh-rlhf/harmless-base.test.jsonl.gz": 2312,
        "llama-factory/dpo_en_demo.json": 300,
        "llama-factory/dpo_zh_demo.json": 300,
        "llama-factory/kto_en_demo.json": 300,
        "llama-factory/v1_dpo_demo.jsonl": 10,
        "llama-factory/glaive_toolcall_en_demo.json": 300,
        "llama-factory/identity.json": 91,
        "gsm8k/train.jsonl": 7473,
        "gsm8k/test.jsonl": 1319,
        "xtuner-resource/gsm8k_train_example_data.jsonl": 200,
        "torchtune-assets/stack_exchange_paired_tiny.json": 25,
        "torchtune-assets/hh_rlhf_tiny.json": 1,
        "fastchat-mtbench/question.jsonl": 80,
        "fastchat-mtbench/dummy_conversation.json": 500,
        "alpaca-seed-tasks/seed_tasks.jsonl": 175,
    }
    for name, count in counts.items():
        rows = list(FilesSource(shared_data / name).rows())
        assert len(rows) == count, name
        assert all(isinstance(row.value, dict) for row in rows), name


def test_a_real_file_that_is_one_object_is_refused(shared_data: Path) -> None:
    path = shared_data / "hh-rlhf" / "odd_rows.json"
    assert os.path.isfile(path)
    with pytest.raises(DataError, match="begins with one object spread over several lines"):
        FilesSource(path)
