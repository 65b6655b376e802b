"""Tables of tokenised groups: nothing lost in silence, built once, whole or absent."""

from __future__ import annotations

import functools
import json
import logging
import mmap
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import own_map_fns
import pytest
from filelock import FileLock
from tiny_tokenizer import CHATML, STRICT, byte_tokenizer

from xrlhf.data import table as table_module
from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.map_fns import pair_map_fn, ranked_map_fn, text_pair_map_fn
from xrlhf.data.reasons import Reason
from xrlhf.data.sources import Chunk, MemorySource, open_source
from xrlhf.data.table import (
    GroupTable,
    LeftOut,
    TableReport,
    build_table,
    default_cache_dir,
    map_fn_identity,
)
from xrlhf.errors import ConfigError, DataError
from xrlhf.structures import Group, TokenizedGroup

Row = dict[str, Any]
ENCODER = GroupEncoder(byte_tokenizer(), max_length=99)


def pair(number: int, **changes: Any) -> Row:
    return {"prompt": f"prompt {number}", "chosen": f"good {number}", "rejected": "bad", **changes}


def pairs(count: int) -> list[Row]:
    return [pair(number) for number in range(count)]


def write(path: Path, rows: Sequence[Row | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def same(one: TokenizedGroup, two: TokenizedGroup) -> bool:
    ratings = (one.ratings is None) == (two.ratings is None) and (
        one.ratings is None or two.ratings is None or np.array_equal(one.ratings, two.ratings)
    )
    return (
        ratings
        and np.array_equal(one.prompt_ids, two.prompt_ids)
        and len(one.response_ids) == len(two.response_ids)
        and all(np.array_equal(a, b) for a, b in zip(one.response_ids, two.response_ids, strict=True))
    )


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., GroupTable]:
    """Builds a table of rows or of a file, in a cache of this test's own."""

    def build_it(data: Any, map_fn: Any = pair_map_fn, encoder: GroupEncoder = ENCODER, **options: Any) -> GroupTable:
        source = MemorySource(data, "rows") if isinstance(data, list) else open_source(data)
        return build_table(source, map_fn, encoder, **{"cache_dir": tmp_path / "cache", **options})

    return build_it


def tables_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "tables").iterdir() if path.is_dir())


# ---------------------------------------------------------------- what a table holds


def test_groups_come_back_as_they_were_encoded(build: Callable[..., GroupTable]) -> None:
    rows: list[Row] = [
        {"prompt": "p", "responses": ["a", "bc"], "ratings": [2, 1]},
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
            "responses": ["x", "y", "z"],
        },
        {"prompt": "only one", "responses": ["lonely"]},
        {"prompt": "r", "responses": ["d", "e", "f", "g"], "ratings": [1.5, 1.5, 0, -1]},
    ]
    made = build(rows, ranked_map_fn)
    groups = [ranked_map_fn(rows[number]) for number in (0, 1, 3)]
    expected = ENCODER.encode(groups)
    assert len(made) == 3
    for index, (item, row) in enumerate(zip(expected, (0, 1, 3), strict=True)):
        assert isinstance(item, TokenizedGroup)
        read = made[index]
        assert same(read, item)
        assert (read.row, read.dataset) == (row, 0)
        assert read.prompt_ids.dtype == np.int32
    assert [None if made[i].ratings is None else made[i].ratings.tolist() for i in range(3)] == [  # type: ignore[union-attr]
        [2.0, 1.0],
        None,
        [1.5, 1.5, 0.0, -1.0],
    ]
    made.dataset = 4
    assert made[0].dataset == 4


def test_what_is_read_is_the_readers_own(build: Callable[..., GroupTable]) -> None:
    made = build(pairs(3))
    made[1].prompt_ids[:] = 0
    made[1].response_ids[0][:] = 0
    assert made[1].prompt_ids.any()
    assert made[1].response_ids[0].any()


@pytest.mark.parametrize("index", [-1, 3, 10**9])
def test_an_index_outside_is_refused(build: Callable[..., GroupTable], index: int) -> None:
    with pytest.raises(IndexError, match=f"group {index} of a table of 3"):
        build(pairs(3))[index]


def test_opening_a_table_maps_its_files_and_reads_none(build: Callable[..., GroupTable]) -> None:
    made = build(pairs(5))
    # Nothing can be mapped of what these groups do not have.
    empty = ("attributes", "is_target")
    for array in [values for name, values in made._arrays.items() if name not in empty]:
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert isinstance(memoryview(array.base).obj, mmap.mmap)
    assert made.prompt_keys is made._arrays["prompt_keys"]


@pytest.mark.parametrize("groups_at_once", [1, 3, 1 << 20])
def test_token_counts_against_counting_one_by_one(
    build: Callable[..., GroupTable], monkeypatch: pytest.MonkeyPatch, groups_at_once: int
) -> None:
    monkeypatch.setattr(table_module, "_GROUPS_AT_ONCE", groups_at_once)
    rows = [
        {"prompt": "p" * (1 + number % 5), "responses": [f"{answer}{number}" for answer in "abcd"[: 2 + number % 3]]}
        for number in range(10)
    ]
    made = build(rows, ranked_map_fn)
    groups = [made[index] for index in range(len(made))]
    costs = [group.num_tokens for group in groups]
    assert made.num_tokens().tolist() == costs
    assert made.num_tokens().dtype == np.int64
    some = np.array([7, 0, 7, 9])
    assert made.num_tokens(some).tolist() == [costs[index] for index in some]
    assert made.total_tokens == sum(costs)
    assert made.total_conversation_tokens() == sum(
        len(group.prompt_ids) + len(ids) for group in groups for ids in group.response_ids
    )


def test_equal_prompts_have_equal_keys(build: Callable[..., GroupTable]) -> None:
    one = build([pair(0), pair(1), pair(0, chosen="better")])
    two = build([pair(1, rejected="worse"), pair(2)])
    keys = one.prompt_keys.tolist()
    assert keys[0] == keys[2] != keys[1] == int(two.prompt_keys[0])
    assert one.prompt_keys.dtype == np.uint64


def test_whole_texts_have_keys_of_their_own(build: Callable[..., GroupTable]) -> None:
    """Without a prompt all rows would share one key, and a split by prompt would put them all on one side."""
    made = build([pair(0), pair(1), pair(0)], own_map_fns.whole_text_map_fn)
    keys = made.prompt_keys.tolist()
    assert keys[0] == keys[2] != keys[1]


# ---------------------------------------------------------------- what is left out


@pytest.fixture
def odd_file(tmp_path: Path) -> Path:
    long = "x" * 80
    lines: list[Row | str] = [
        pair(0),  # line 1
        '{"prompt": "cut',
        "[1, 2]",
        "",
        {"prompt": "p", "rejected": "b"},
        pair(1, chosen=None),  # line 6
        pair(2, chosen="  "),
        pair(3, rejected="good 3"),
        pair(4, chosen=long),
        pair(5, prompt=[{"role": "human", "content": "?"}]),
        pair(6, margin=0),  # line 11
        pair(0),
        pair(7, margin=-1),
        pair(8, prompt=" "),
        pair(9, prompt=[{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]),
        pair(0, chosen=long + "x"),  # line 16
    ]
    return write(tmp_path / "odd.jsonl", lines)


def test_every_row_left_out_is_counted_and_located(build: Callable[..., GroupTable], odd_file: Path) -> None:
    """Line 4 is blank and no row, so 15 rows; 1 and 12 are kept and equal."""
    strict = GroupEncoder(byte_tokenizer(STRICT), max_length=99)
    made = build(str(odd_file), encoder=strict, max_bad_share=1.0, max_left_out_share=1.0)
    report = made.report
    assert (report.num_rows, report.num_groups, len(made)) == (15, 2, 2)
    assert [made[0].row, made[1].row] == [0, 10]
    assert report.num_duplicates == 1
    assert report.reasons == {
        "not-json": 1,
        "not-an-object": 1,
        "missing-column": 1,
        "wrong-type": 1,
        "empty": 1,
        "identical": 1,
        "too-long": 2,
        "wrong-roles": 2,
        "tie": 1,
        "bad-label": 1,
        "no-prompt": 1,
    }
    assert report.num_bad == 8
    assert [(e.location, e.reason) for e in report.examples] == [
        (f"{odd_file}:2", Reason.NOT_JSON),
        (f"{odd_file}:3", Reason.NOT_AN_OBJECT),
        (f"{odd_file}:5", Reason.MISSING_COLUMN),
        (f"{odd_file}:6", Reason.WRONG_TYPE),
        (f"{odd_file}:7", Reason.EMPTY),
        (f"{odd_file}:8", Reason.IDENTICAL),
        (f"{odd_file}:9", Reason.TOO_LONG),
        (f"{odd_file}:10", Reason.WRONG_ROLES),
        (f"{odd_file}:11", Reason.TIE),
        (f"{odd_file}:13", Reason.BAD_LABEL),
        (f"{odd_file}:14", Reason.NO_PROMPT),
        (f"{odd_file}:15", Reason.WRONG_ROLES),
        (f"{odd_file}:16", Reason.TOO_LONG),
    ]
    details = {e.location.rpartition(":")[2]: e.detail for e in report.examples}
    # "prompt 4" makes a turn of 1 + 4 + 1 + 8 + 1 + 1 ids, the answer one of 1 + 9 + 1 + 80 + 1 + 1.
    assert details["9"] == "109 tokens, the limit is 99"
    assert details["15"] == "the chat template refuses the conversation: System role not supported"
    lines = report.lines(str(odd_file))
    assert lines[0] == f"{odd_file}: 2 of 15 rows became groups"
    assert "  left out 2 (13.3%): longer than the token limit [too-long], first at 9, 16" in lines
    assert lines[1].endswith("[too-long], first at 9, 16") or lines[1].endswith("[wrong-roles], first at 10, 15")
    assert lines[-1] == "  kept 1 groups that repeat an earlier one"
    assert len(lines) == 1 + 11 + 1


def test_answers_alike_after_cutting_are_counted_at_their_line(
    build: Callable[..., GroupTable], tmp_path: Path
) -> None:
    """27 ids stand before the answer and 2 behind it: a limit of 34 leaves five letters of both, "same "."""
    data = write(tmp_path / "d.jsonl", [pair(0), pair(1, chosen="same start", rejected="same stop"), pair(2)])
    encoder = GroupEncoder(byte_tokenizer(), max_length=34, truncation="end")
    made = build(str(data), encoder=encoder)
    assert made.report.examples == [LeftOut(f"{data}:2", Reason.IDENTICAL, "two responses have the same tokens")]
    assert len(made) == 2


def test_rows_left_out_are_listed_in_the_order_of_the_file(build: Callable[..., GroupTable], tmp_path: Path) -> None:
    """Line 2 falls out after tokenising, line 4 before: the report still says 2 first."""
    encoder = GroupEncoder(byte_tokenizer(), max_length=34, truncation="end")
    lines = [pair(0), pair(1, chosen="same start", rejected="same stop"), pair(2), pair(3, rejected="good 3")]
    made = build(str(write(tmp_path / "d.jsonl", lines)), encoder=encoder)
    assert made.report.lines(made.source_name)[1].endswith("[identical], first at 2, 4")


def test_a_report_counts_all_and_keeps_twenty_examples_of_each_reason() -> None:
    report = TableReport(num_rows=60, num_groups=5)
    for number in range(50):
        report.add(LeftOut(f"f:{number}", Reason.EMPTY, "blank"))
    for number in range(5):
        report.add(LeftOut(f"f:{number}", Reason.NOT_JSON, "broken"))
    assert report.reasons == {"empty": 50, "not-json": 5}
    assert [e.location for e in report.examples] == [f"f:{n}" for n in range(20)] + [f"f:{n}" for n in range(5)]
    assert report.num_bad == 5
    assert report.lines("f") == [
        "f: 5 of 60 rows became groups",
        "  left out 50 (83.3%): an answer is blank [empty], first at 0, 1, 2",
        "  left out 5 (8.3%): the line is not valid JSON [not-json], first at 0, 1, 2",
    ]
    assert TableReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_too_many_bad_rows_stop_the_run(build: Callable[..., GroupTable], tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", [*pairs(7), {"prompt": "p"}, "{", pair(9, chosen="")])
    with pytest.raises(DataError) as caught:
        build(str(data), max_bad_share=0.1)
    assert str(caught.value).splitlines() == [
        f"2 of 10 rows of {data} do not have the format, more than max_bad_share=0.1 allows: "
        "choose the map function of this format, or mend the rows",
        f"{data}: 7 of 10 rows became groups",
        "  left out 1 (10.0%): a column of the format is missing [missing-column], first at 8",
        "  left out 1 (10.0%): the line is not valid JSON [not-json], first at 9",
        "  left out 1 (10.0%): an answer is blank [empty], first at 10",
        f"    {data}:8: column 'chosen' is missing; the row has 'prompt'",
        f"    {data}:9: Expecting property name enclosed in double quotes (column 2)",
        f"    {data}:10: chosen is blank",
    ]
    assert len(build(str(data), max_bad_share=0.2)) == 7


def test_too_many_dropped_rows_stop_the_run(build: Callable[..., GroupTable]) -> None:
    rows = [*pairs(4), *[pair(number, chosen="") for number in range(6)]]
    with pytest.raises(
        DataError, match=r"^6 of 10 rows of rows were left out, more than max_left_out_share=0.5 allows"
    ):
        build(rows)
    assert len(build(rows, max_left_out_share=0.6)) == 4


def test_no_usable_row_is_an_error_whatever_is_allowed(build: Callable[..., GroupTable]) -> None:
    for _ in range(2):  # the second time from the cache
        with pytest.raises(DataError, match=r"^no row of rows is usable\n.*0 of 3 rows.*\n.*left out 3 \(100.0%\)"):
            build(pairs(3), own_map_fns.drops_all_map_fn, max_bad_share=1.0, max_left_out_share=1.0)


def test_a_source_without_rows_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources that come with xrlhf refuse this themselves; others may not."""
    monkeypatch.setattr(MemorySource, "chunks", lambda *arguments: iter([]))
    with pytest.raises(DataError, match=r"^nothing has no rows"):
        build_table(MemorySource(pairs(1), "nothing"), pair_map_fn, ENCODER, cache_dir=tmp_path)


@pytest.mark.parametrize("option", ["max_bad_share", "max_left_out_share"])
@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_between_none_and_all(build: Callable[..., GroupTable], option: str, share: float) -> None:
    with pytest.raises(DataError, match=f"{option} must lie between 0 and 1, got {share:g}"):
        build(pairs(3), **{option: share})


# ---------------------------------------------------------------- built once


@pytest.fixture
def calls() -> Iterator[list[str]]:
    own_map_fns.CALLS.clear()
    yield own_map_fns.CALLS
    own_map_fns.CALLS.clear()


def test_a_second_build_reads_the_cache(
    build: Callable[..., GroupTable], calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(pairs(5), own_map_fns.counted_map_fn)
    assert len(calls) == 5
    monkeypatch.setattr(GroupEncoder, "encode", None)
    second = build(pairs(5), own_map_fns.counted_map_fn)
    assert len(calls) == 5
    assert second.folder == first.folder
    assert second.report == first.report
    assert all(same(first[index], second[index]) for index in range(5))


def test_any_change_makes_another_table(build: Callable[..., GroupTable], tmp_path: Path) -> None:
    tables = [
        build(pairs(5)),
        build([*pairs(4), pair(4, rejected="worse")]),
        build(pairs(5), ranked_by := own_map_fns.counted_map_fn),
        build(pairs(5), functools.partial(ranked_by, system="s")),
        build(pairs(5), functools.partial(ranked_by, system="t")),
        build(pairs(5), encoder=GroupEncoder(byte_tokenizer(), max_length=98)),
        build(pairs(5), encoder=GroupEncoder(byte_tokenizer(), max_length=99, truncation="end")),
        build(pairs(5), encoder=GroupEncoder(byte_tokenizer(CHATML + " "), max_length=99)),
    ]
    assert len({made.folder for made in tables}) == len(tables)
    assert tables_in(tmp_path / "cache") == sorted(made.folder.name for made in tables)


def test_a_new_version_makes_another_table(build: Callable[..., GroupTable], monkeypatch: pytest.MonkeyPatch) -> None:
    before = build(pairs(5)).folder
    monkeypatch.setattr(table_module, "__version__", "99.0")
    assert build(pairs(5)).folder != before


def test_a_moved_file_keeps_its_table_and_is_called_by_its_new_name(
    build: Callable[..., GroupTable], tmp_path: Path
) -> None:
    old = write(tmp_path / "old.jsonl", [*pairs(5), pair(5, chosen="")])
    folder = build(str(old)).folder
    new = old.rename(tmp_path / "new.jsonl")
    made = build(str(new))
    assert made.folder == folder
    assert made.source_name == str(new)
    assert [e.location for e in made.report.examples] == [f"{new}:6"]


def test_places_in_moved_lists_of_files_keep_their_old_paths(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    names = ["a.jsonl", "b.jsonl"]
    for name in names:
        write(old / name, [*pairs(3), pair(3, chosen="")])
    table_of = functools.partial(build_table, map_fn=pair_map_fn, encoder=ENCODER, cache_dir=tmp_path / "cache")
    first = table_of(open_source([str(old / name) for name in names]))
    old.rename(new)
    made = table_of(open_source([str(new / name) for name in names]))
    assert made.folder == first.folder
    assert made.source_name == f"{new / 'a.jsonl'} and 1 more"
    assert [e.location for e in made.report.examples] == [f"{old / name}:4" for name in names]


def test_the_hash_of_a_file_is_remembered_beside_the_tables(build: Callable[..., GroupTable], tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", pairs(3))
    long_ago = time.time() - 100
    os.utime(data, (long_ago, long_ago))
    build(str(data))
    assert str(data) in (tmp_path / "cache" / "file_hashes.json").read_text()


def test_a_table_that_cannot_be_written_to_is_read_all_the_same(
    build: Callable[..., GroupTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache shared by a group, read-only for some of them."""
    build(pairs(3))

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert len(build(pairs(3))) == 3


def test_a_cache_that_cannot_be_written_to_is_one_clear_line(build: Callable[..., GroupTable], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"the table of rows cannot be kept in .*file/tables \(.*cache_dir or XRLHF_CACHE"
    ):
        build(pairs(3), cache_dir=tmp_path / "file")


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
    build: Callable[..., GroupTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot be kept in .* \(No space left on device\): make room"):
        build(pairs(3))
    assert tables_in(tmp_path / "cache") == []


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XRLHF_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    assert build_table(MemorySource(pairs(2)), pair_map_fn, ENCODER).folder.parent == tmp_path / "own" / "tables"
    monkeypatch.delenv("XRLHF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "xrlhf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "xrlhf"


def test_a_process_that_has_to_wait_says_so(
    build: Callable[..., GroupTable], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process holds the lock of the table for two seconds, and has built nothing when it lets go."""
    folder = build(pairs(3)).folder
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    monkeypatch.setattr(logging.getLogger("xrlhf"), "propagate", True)
    held = threading.Event()

    def hold() -> None:
        with FileLock(folder.with_suffix(".lock")):
            held.set()
            time.sleep(2.0)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    with caplog.at_level(logging.INFO, "xrlhf"):
        assert len(build(pairs(3))) == 3
    other.join()
    assert "waiting for another process that tokenises rows" in caplog.text


# ---------------------------------------------------------------- whole or absent


@pytest.mark.parametrize(
    ("map_fn", "expected"),
    [(own_map_fns.fails_at_three_map_fn, DataError), (own_map_fns.interrupted_map_fn, KeyboardInterrupt)],
)
def test_a_build_that_fails_half_way_leaves_no_table(
    build: Callable[..., GroupTable],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    map_fn: Any,
    expected: type[BaseException],
) -> None:
    monkeypatch.setattr(table_module, "_CHUNK_ROWS", 2)
    with pytest.raises(expected):
        build(pairs(6), map_fn)
    assert tables_in(tmp_path / "cache") == []


def test_what_a_killed_build_left_behind_is_cleared_away(build: Callable[..., GroupTable], tmp_path: Path) -> None:
    made = build(pairs(3))
    expected = {file.name: file.read_bytes() for file in made.folder.iterdir()}
    partial = made.folder.rename(made.folder.with_name(f"{made.folder.name}.{platform.node()}.partial"))
    (partial / "table.json").unlink()
    (partial / "tokens.bin").write_bytes(b"half of it")
    (partial / "junk").touch()
    again = build(pairs(3))
    assert {file.name: file.read_bytes() for file in again.folder.iterdir()} == expected
    assert tables_in(tmp_path / "cache") == [again.folder.name]


def test_another_machine_may_finish_the_same_table_first(
    build: Callable[..., GroupTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a shared file system whose locks hold on one machine only."""
    made = build(pairs(3))
    elsewhere = made.folder.rename(tmp_path / "elsewhere")
    chunks = MemorySource.chunks

    def overtaken(source: MemorySource, rows_per_chunk: int) -> Iterator[Chunk]:
        yield from chunks(source, rows_per_chunk)
        shutil.copytree(elsewhere, made.folder)

    monkeypatch.setattr(MemorySource, "chunks", overtaken)
    assert same(build(pairs(3))[1], made[1])
    assert tables_in(tmp_path / "cache") == [made.folder.name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "rows.bin").unlink(), "rows.bin"),
        (lambda folder: os.truncate(folder / "tokens.bin", 40), "tokens.bin holds 10 values, expected"),
        (lambda folder: os.truncate(folder / "rows.bin", 8), "rows.bin holds 1 values, expected 3"),
        (lambda folder: os.truncate(folder / "ratings.bin", 0), "ratings.bin holds 0 values, expected 9"),
        (lambda folder: os.truncate(folder / "lengths.bin", 7), "multiple of element size"),
        (lambda folder: (folder / "table.json").write_text("{"), "Expecting property name"),
        (lambda folder: (folder / "table.json").write_text("{}"), "report"),
    ],
)
def test_a_damaged_table_is_named(
    build: Callable[..., GroupTable], damage: Callable[[Path], object], message: str
) -> None:
    folder = build(pairs(3)).folder
    damage(folder)
    with pytest.raises(DataError, match=f"{folder}: the cached table is damaged .*{message}.*delete this folder"):
        build(pairs(3))


# ---------------------------------------------------------------- bugs in a map function


def test_a_bug_in_a_map_function_is_located_in_data_and_code(build: Callable[..., GroupTable], tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", pairs(6))
    with pytest.raises(DataError) as caught:
        build(str(data), own_map_fns.fails_at_three_map_fn)
    line = own_map_fns.fails_at_three_map_fn.__code__.co_firstlineno + 3
    assert str(caught.value) == (
        f"{data}:4: map function fails_at_three_map_fn failed with KeyError: 'answer' "
        f"({own_map_fns.__file__}:{line}); for a row to leave out it raises RowError"
    )
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("map_fn", "found"),
    [
        (own_map_fns.returns_row_map_fn, "map function returns_row_map_fn returned object"),
        (own_map_fns.returns_no_responses_map_fn, "returns_no_responses_map_fn returned a Group without responses"),
    ],
)
def test_a_map_function_must_give_a_group(build: Callable[..., GroupTable], map_fn: Any, found: str) -> None:
    with pytest.raises(DataError, match=rf"rows\[0\]: .*{found}; expected a Group with one or more"):
        build(pairs(3), map_fn)


def test_a_wrong_option_of_a_map_function_stays_what_it_is(build: Callable[..., GroupTable]) -> None:
    with pytest.raises(ConfigError, match="empty='hide'"):
        build(pairs(3), functools.partial(pair_map_fn, empty="hide"))


def test_an_object_may_be_a_map_function(build: Callable[..., GroupTable]) -> None:
    tables = [build(pairs(3), own_map_fns.AddsSystem(system)) for system in ("a", "b", "a")]
    assert tables[0].folder == tables[2].folder != tables[1].folder


def test_the_identity_of_a_map_function() -> None:
    counted = own_map_fns.counted_map_fn
    identities = [
        map_fn_identity(counted),
        map_fn_identity(functools.partial(counted, system="a")),
        map_fn_identity(functools.partial(counted, system="b")),
        map_fn_identity(functools.partial(functools.partial(counted, system="a"), system="c")),
        map_fn_identity(functools.partial(counted, "bound")),
        map_fn_identity(own_map_fns.AddsSystem("a")),
        map_fn_identity(own_map_fns.AddsSystem("b")),
        map_fn_identity(own_map_fns.drops_all_map_fn),
    ]
    assert len(set(identities)) == len(identities)
    assert identities[1] == map_fn_identity(functools.partial(counted, system="a"))
    assert identities[0].startswith("own_map_fns.counted_map_fn:[]:")


def test_another_source_text_is_another_map_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    identities = []
    for version in (1, 2):
        (tmp_path / f"edited_{version}.py").write_text(f"def row_fn(row):\n    return helper(row, {version})\n")
        function = __import__(f"edited_{version}").row_fn
        function.__module__ = f"edited_{version}"
        identities.append(map_fn_identity(function).rpartition(":")[2])
    assert identities[0] != identities[1]


def test_a_function_without_source_is_known_by_its_code() -> None:
    """As typed in at a prompt."""
    codes = []
    for version in (1, 2, 1):
        space: dict[str, Any] = {"__name__": "prompt"}
        exec(f"def row_fn(row):\n    return {version}", space)
        codes.append(map_fn_identity(space["row_fn"]))
    assert codes[0] == codes[2] != codes[1]


# ---------------------------------------------------------------- worker processes


def files_of(made: GroupTable) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in made.folder.iterdir()}


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(
    build: Callable[..., GroupTable], tmp_path: Path, odd_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "_CHUNK_ROWS", 4)
    with odd_file.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in pairs(120))
    options = {"max_bad_share": 1.0, "max_left_out_share": 1.0}
    alone = build(str(odd_file), cache_dir=tmp_path / "one", num_workers=1, **options)
    shared = build(str(odd_file), cache_dir=tmp_path / "two", num_workers=2, **options)
    assert files_of(shared) == files_of(alone)
    assert set(files_of(alone)) == {"table.json", *(f"{name}.bin" for name in table_module._DTYPES)}
    assert len(alone) == 2 + 120 + 1  # this template lets the system turn of line 15 pass


@pytest.mark.slow
def test_a_worker_that_dies_or_fails_is_one_clear_line(build: Callable[..., GroupTable], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one of 2 tokenising processes died.*set num_workers lower"):
        build(pairs(3), own_map_fns.dies_map_fn, num_workers=2)
    with pytest.raises(DataError, match=r"rows\[3\]: map function fails_at_three_map_fn failed with KeyError"):
        build(pairs(6), own_map_fns.fails_at_three_map_fn, num_workers=2)
    assert tables_in(tmp_path / "cache") == []


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First rows of the chunks that worker processes would have got, and before them their number."""
    seen: list[int] = []

    def in_pool(chunks: Iterator[Chunk], map_fn: Any, encoder: GroupEncoder, num_workers: int) -> Iterator[Any]:
        seen.append(num_workers)
        for chunk in chunks:
            seen.append(chunk.first_row)
            yield table_module.encode_chunk(chunk, map_fn, encoder)

    monkeypatch.setattr(table_module, "_encoded_in_pool", in_pool)
    monkeypatch.setattr(table_module, "_num_cores", lambda: 8)
    monkeypatch.setattr(table_module, "_CHUNK_ROWS", 10)
    monkeypatch.setattr(table_module, "_ROWS_WORTH_WORKERS", 30)
    return seen


class UnknownSize(MemorySource):
    """Like a compressed file: nobody knows how many rows there are until they are read."""

    def num_rows_hint(self) -> int | None:
        return None


@pytest.mark.parametrize(
    ("source", "num_workers", "expected"),
    [
        (MemorySource(pairs(29)), None, [8]),
        (MemorySource(pairs(30)), None, [8, 0, 10, 20]),
        (UnknownSize(pairs(29)), None, [8]),
        (UnknownSize(pairs(45)), None, [8, 30, 40]),
        (MemorySource(pairs(45)), 1, []),
        (MemorySource(pairs(15)), 3, [3, 0, 10]),
    ],
)
def test_workers_come_in_where_the_source_is_worth_it(
    tmp_path: Path, pooled: list[int], source: MemorySource, num_workers: int | None, expected: list[int]
) -> None:
    """From 30 rows on in this test; of a source of unknown size the first 30 rows are done without them."""
    made = build_table(source, pair_map_fn, ENCODER, cache_dir=tmp_path, num_workers=num_workers)
    assert pooled == expected
    assert [made[index].row for index in range(len(made))] == list(range(len(source._items)))


def test_plain_text_rows(build: Callable[..., GroupTable]) -> None:
    rows = [{"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}]
    made = build(rows, text_pair_map_fn, GroupEncoder(byte_tokenizer(None), max_length=99))
    tokenizer = byte_tokenizer(None)
    whole = [*made[0].prompt_ids.tolist(), *made[0].response_ids[0].tolist()]
    assert tokenizer.decode(whole) == "The sky is blue.<|im_end|>"


# ---------------------------------------------------------------- attributes


def rated(row: Row) -> Group:
    """One response and the attributes of the row."""
    return Group(row["prompt"], (row["response"],), attributes=row.get("attributes"))


RATED_ROWS: list[Row] = [
    {"prompt": "a", "response": " b", "attributes": {"help": (1.0,), "truth": (2.0,)}},
    {"prompt": "c", "response": " d", "attributes": {"truth": (3.0,), "other": (9.0,)}},
    {"prompt": "e", "response": " f", "attributes": {"other": (9.0,)}},
    {"prompt": "g", "response": " h"},
]


def with_attributes(*names: str) -> GroupEncoder:
    return GroupEncoder(byte_tokenizer(), max_length=99, attributes=names)


def test_attributes_come_back_by_the_names_asked_for(build: Callable[..., GroupTable]) -> None:
    """In the order of the names; NaN for what a row lacks; rows with none of them are counted."""
    made = build(RATED_ROWS, rated, with_attributes("truth", "help"), max_left_out_share=0.5)
    assert len(made) == 2
    assert made.attributes == ("truth", "help")
    first, second = made[0].attributes, made[1].attributes
    assert first is not None
    assert second is not None
    assert first.dtype == np.float32
    assert first.tolist() == [[2.0, 1.0]]
    np.testing.assert_array_equal(second, np.array([[3.0, np.nan]], dtype=np.float32))
    assert dict(made.report.reasons) == {"no-attributes": 2}
    assert made.report.examples[0].detail == "the row has the attributes 'other'; expected some of 'truth', 'help'"
    assert made.report.examples[1].detail == "the row has the attributes none; expected some of 'truth', 'help'"


def test_attributes_of_groups_of_several(build: Callable[..., GroupTable]) -> None:
    def map_fn(row: Row) -> Group:
        responses = tuple(f" {row['n']}{k}" for k in range(row["n"]))
        return Group("p", responses, attributes={"x": tuple(float(10 * row["n"] + k) for k in range(row["n"]))})

    made = build([{"n": 3}, {"n": 1}, {"n": 2}], map_fn, with_attributes("x"))
    values = [made[i].attributes for i in range(3)]
    assert [None if v is None else v[:, 0].tolist() for v in values] == [[30, 31, 32], [10], [20, 21]]


def test_other_names_make_another_table(build: Callable[..., GroupTable], tmp_path: Path) -> None:
    plain = build(RATED_ROWS, rated)
    assert plain[0].attributes is None
    assert plain.attributes == ()
    for names in (("help", "truth"), ("truth", "help"), ("truth",)):
        assert build(RATED_ROWS, rated, with_attributes(*names), max_left_out_share=1.0).attributes == names
    assert len(tables_in(tmp_path / "cache")) == 4


def test_a_table_of_an_older_format_is_never_opened(
    build: Callable[..., GroupTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is another one, so it is built anew beside it."""
    monkeypatch.setattr(table_module, "_FORMAT", 1)
    build(pairs(2))
    (older,) = tables_in(tmp_path / "cache")
    (tmp_path / "cache" / "tables" / older / "attributes.bin").unlink()
    monkeypatch.undo()
    assert len(build(pairs(2))) == 2
    assert len(tables_in(tmp_path / "cache")) == 2


def test_attributes_that_are_cut_short_are_damage(build: Callable[..., GroupTable], tmp_path: Path) -> None:
    made = build(RATED_ROWS, rated, with_attributes("truth"))
    (made.folder / "attributes.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"damaged \(attributes\.bin holds 0 values, expected 4\)"):
        build(RATED_ROWS, rated, with_attributes("truth"))
