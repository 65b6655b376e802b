"""Tokenised groups on disk: built once, memory-mapped ever after.

A table is a folder of flat arrays. Reading a group touches the few pages it lies on, so ten million groups need no
more memory than ten thousand. A table is written aside and renamed when whole; its name is a digest of the data's
content, the map function, the tokenizer and the settings, so a second start finds it and any change makes another.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import shutil
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources import Chunk, Source
from xrlhf.errors import DataError
from xrlhf.progress import progress_bar
from xrlhf.structures import Group, TokenizedGroup

__all__ = [
    "GroupTable",
    "LeftOut",
    "TableReport",
    "build_table",
    "default_cache_dir",
    "encode_chunk",
    "map_fn_identity",
]

logger = logging.getLogger("xrlhf")

MapFn = Callable[[Mapping[str, Any]], Group]

_FORMAT = 1
_CHUNK_ROWS = 2048
_EXAMPLES = 20
_ROWS_WORTH_WORKERS = 20_000
_DTYPES = {
    "tokens": np.int32,
    "lengths": np.int32,
    "length_ends": np.int64,
    "token_ends": np.int64,
    "ratings": np.float32,
    "rows": np.int64,
    "prompt_keys": np.uint64,
}


def default_cache_dir() -> Path:
    """Where tables are kept: ``XRLHF_CACHE``, else ``xrlhf`` in the user's cache folder."""
    if "XRLHF_CACHE" in os.environ:
        return Path(os.environ["XRLHF_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "xrlhf"


def map_fn_identity(map_fn: MapFn) -> str:
    """Name, bound options and source code of a map function: a change in any of them makes a new table."""
    options: dict[str, Any] = {}
    while isinstance(map_fn, partial):
        options = {**map_fn.keywords, **options}
        map_fn = map_fn.func
    try:
        code = inspect.getsource(inspect.getmodule(map_fn) or map_fn)
    except (OSError, TypeError):
        code = ""
    digest = hashlib.blake2b(code.encode(), digest_size=8).hexdigest()
    return f"{map_fn.__module__}.{map_fn.__qualname__}:{json.dumps(options, sort_keys=True, default=str)}:{digest}"


@dataclass(frozen=True)
class LeftOut:
    """One row that did not make it into the table, and why."""

    location: str
    reason: Reason
    detail: str


@dataclass
class TableReport:
    """What became of every row of a source.

    Args:
        num_rows: Rows read.
        num_groups: Rows that became groups.
        reasons: Rows left out, by reason.
        examples: The first few rows left out for each reason.
        num_duplicates: Groups whose tokens equal those of an earlier group (kept, but worth knowing).
    """

    num_rows: int = 0
    num_groups: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[LeftOut] = field(default_factory=list)
    num_duplicates: int = 0

    @property
    def num_bad(self) -> int:
        """Rows that do not have the format."""
        return sum(count for reason, count in self.reasons.items() if Reason(reason).bad)

    def add(self, left_out: LeftOut) -> None:
        self.reasons[left_out.reason.value] += 1
        if sum(example.reason is left_out.reason for example in self.examples) < _EXAMPLES:
            self.examples.append(left_out)

    def lines(self, name: str) -> list[str]:
        """The report as plain lines, one per reason with the first places it occurred at."""
        lines = [f"{name}: {self.num_groups} of {self.num_rows} rows became groups"]
        for reason, count in sorted(self.reasons.items(), key=lambda item: -item[1]):
            places = [
                example.location.removeprefix(f"{name}:") for example in self.examples if example.reason.value == reason
            ][:3]
            lines.append(
                f"  left out {count} ({count / max(1, self.num_rows):.1%}): {Reason(reason).description}"
                f" [{reason}], first at {', '.join(places)}"
            )
        if self.num_duplicates:
            lines.append(f"  kept {self.num_duplicates} groups that repeat an earlier one")
        return lines

    def to_json(self) -> dict[str, Any]:
        return {
            "num_rows": self.num_rows,
            "num_groups": self.num_groups,
            "num_duplicates": self.num_duplicates,
            "left_out": dict(self.reasons),
            "examples": [[e.location, e.reason.value, e.detail] for e in self.examples],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TableReport:
        examples = [LeftOut(location, Reason(reason), detail) for location, reason, detail in data["examples"]]
        return cls(data["num_rows"], data["num_groups"], Counter(data["left_out"]), examples, data["num_duplicates"])


class GroupTable:
    """A sequence of :class:`TokenizedGroup` read from a folder on disk.

    Args:
        folder: A folder made by :func:`build_table`.
        dataset: Written into every group read, to tell sources apart.
    """

    def __init__(self, folder: Path, dataset: int = 0) -> None:
        self.folder = folder
        self.dataset = dataset
        info = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        self.report = TableReport.from_json(info["report"])
        self.source_name: str = info["source"]
        self.size: int = info["num_groups"]
        self._arrays = {name: self._map(folder / f"{name}.bin", dtype) for name, dtype in _DTYPES.items()}

    @staticmethod
    def _map(path: Path, dtype: Any) -> np.ndarray:
        if path.stat().st_size == 0:
            return np.empty(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> TokenizedGroup:
        arrays = self._arrays
        if not 0 <= index < self.size:
            raise IndexError(f"group {index} of a table of {self.size}")
        length_start = int(arrays["length_ends"][index - 1]) if index else 0
        token_start = int(arrays["token_ends"][index - 1]) if index else 0
        lengths = arrays["lengths"][length_start : int(arrays["length_ends"][index])]
        tokens = np.array(arrays["tokens"][token_start : int(arrays["token_ends"][index])])
        prompt, *responses = np.split(tokens, np.cumsum(lengths[:-1]))
        # Ratings lie beside the lengths: the prompt's place is unused.
        ratings = np.array(arrays["ratings"][length_start + 1 : int(arrays["length_ends"][index])])
        return TokenizedGroup(
            prompt,
            tuple(responses),
            None if np.isnan(ratings).all() else ratings,
            dataset=self.dataset,
            row=int(arrays["rows"][index]),
        )

    def num_tokens(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Tokens that each group costs, int64: of all groups, or of those at ``indices``."""
        ends = self._arrays["token_ends"]
        if indices is None:
            return np.diff(ends, prepend=0)
        starts = np.where(indices > 0, ends[np.maximum(indices - 1, 0)], 0)
        return ends[indices] - starts

    @property
    def total_tokens(self) -> int:
        return int(self._arrays["token_ends"][-1]) if self.size else 0

    @property
    def prompt_keys(self) -> np.ndarray:
        """(N,) uint64, a digest of each group's prompt text; equal prompts have equal keys."""
        return self._arrays["prompt_keys"]

    def total_conversation_tokens(self) -> int:
        """Tokens the same conversations would cost one by one, every prompt computed K times."""
        total = 0
        lengths, ends = self._arrays["lengths"], self._arrays["length_ends"]
        for start in range(0, self.size, 1 << 20):
            stop = min(self.size, start + (1 << 20))
            first = int(ends[start - 1]) if start else 0
            part = np.asarray(lengths[first : int(ends[stop - 1])], dtype=np.int64)
            prompt_at = np.concatenate([[0], np.asarray(ends[start : stop - 1]) - first])
            responses = np.diff(np.concatenate([prompt_at, [len(part)]])) - 1
            total += int(part.sum() + (part[prompt_at] * (responses - 1)).sum())
        return total


@dataclass(frozen=True)
class EncodedRow:
    """A group ready for the table: its tokens and a digest of its prompt."""

    group: TokenizedGroup
    prompt_key: int


def _prompt_key(group: Group) -> int:
    text = group.prompt if isinstance(group.prompt, str) else json.dumps(group.prompt, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def encode_chunk(chunk: Chunk, map_fn: MapFn, encoder: GroupEncoder) -> tuple[int, list[EncodedRow], list[LeftOut]]:
    """Parse, map and encode the rows of one chunk: (rows read, groups, rows left out)."""
    groups: list[Group] = []
    places: list[tuple[int, str]] = []
    left_out: list[LeftOut] = []
    num_rows = 0
    for raw in chunk.rows():
        num_rows += 1
        if isinstance(raw.value, RowError):
            left_out.append(LeftOut(raw.location, raw.value.reason, raw.value.detail))
            continue
        try:
            groups.append(map_fn(raw.value))
        except RowError as error:
            left_out.append(LeftOut(raw.location, error.reason, error.detail))
            continue
        places.append((raw.row, raw.location))
    encoded: list[EncodedRow] = []
    for group, (row, location), result in zip(groups, places, encoder.encode(groups), strict=True):
        if isinstance(result, RowError):
            left_out.append(LeftOut(location, result.reason, result.detail))
            continue
        tokenized = TokenizedGroup(result.prompt_ids, result.response_ids, result.ratings, row=row)
        encoded.append(EncodedRow(tokenized, _prompt_key(group)))
    return num_rows, encoded, left_out


_worker: tuple[MapFn, GroupEncoder] | None = None


def _start_worker(map_fn: MapFn, encoder: GroupEncoder) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = (map_fn, encoder)


def _work(chunk: Chunk) -> tuple[int, list[EncodedRow], list[LeftOut]]:
    assert _worker is not None
    return encode_chunk(chunk, *_worker)


def _encoded_chunks(
    source: Source, map_fn: MapFn, encoder: GroupEncoder, num_workers: int
) -> Iterator[tuple[int, list[EncodedRow], list[LeftOut]]]:
    chunks: Iterable[Chunk] = source.chunks(_CHUNK_ROWS)
    if num_workers <= 1:
        for chunk in chunks:
            yield encode_chunk(chunk, map_fn, encoder)
        return
    with ProcessPoolExecutor(
        num_workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(map_fn, encoder)
    ) as pool:
        waiting: list[Any] = []
        for chunk in chunks:
            waiting.append(pool.submit(_work, chunk))
            # A bounded queue keeps memory flat however long the source is.
            if len(waiting) >= 4 * num_workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


class _TableWriter:
    """Appends groups to the flat files of a table."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_groups = 0
        self._files = {name: (folder / f"{name}.bin").open("wb") for name in _DTYPES}
        self._length_end = 0
        self._token_end = 0

    def write(self, rows: list[EncodedRow]) -> None:
        columns: dict[str, list[np.ndarray]] = {name: [] for name in _DTYPES}
        for row in rows:
            group = row.group
            pieces = [group.prompt_ids, *group.response_ids]
            self._length_end += len(pieces)
            self._token_end += group.num_tokens
            ratings = np.full(len(group.response_ids), np.nan) if group.ratings is None else group.ratings
            columns["tokens"].extend(pieces)
            columns["lengths"].append(np.array([len(piece) for piece in pieces]))
            columns["length_ends"].append(np.array([self._length_end]))
            columns["token_ends"].append(np.array([self._token_end]))
            columns["ratings"].append(np.concatenate([[np.nan], ratings]))
            columns["rows"].append(np.array([group.row]))
            columns["prompt_keys"].append(np.array([row.prompt_key], dtype=np.uint64))
        for name, arrays in columns.items():
            if arrays:
                self._files[name].write(np.concatenate(arrays).astype(_DTYPES[name]).tobytes())
        self.num_groups += len(rows)

    def close(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()


def _digest_of_tokens(group: TokenizedGroup) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for ids in (group.prompt_ids, *group.response_ids):
        digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return int.from_bytes(digest.digest(), "little")


def build_table(
    source: Source,
    map_fn: MapFn,
    encoder: GroupEncoder,
    *,
    cache_dir: Path | None = None,
    num_workers: int | None = None,
    max_bad_share: float = 0.02,
    max_left_out_share: float = 0.5,
) -> GroupTable:
    """The table of a source: read from the cache if it is there, else built.

    Args:
        source: Where the rows come from.
        map_fn: Turns a row into a :class:`Group` or raises :class:`RowError`.
        encoder: Turns groups into token ids.
        cache_dir: Folder of all tables; :func:`default_cache_dir` if None.
        num_workers: Processes that parse, map and tokenise; by the size of the source and the machine if None.
        max_bad_share: Stop when more than this share of rows does not have the format.
        max_left_out_share: Stop when more than this share of rows is left out for any reason.

    Raises:
        DataError: Too many rows left out, or none kept; the message holds the counts and the first places.
    """
    cache_dir = cache_dir or default_cache_dir()
    key = hashlib.blake2b(
        json.dumps([_FORMAT, source.fingerprint(), map_fn_identity(map_fn), encoder.fingerprint()]).encode(),
        digest_size=16,
    ).hexdigest()
    folder = cache_dir / "tables" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "table.json").exists():
            _build(source, map_fn, encoder, folder, num_workers)
        table = GroupTable(folder)
    _check_shares(table, source.name, max_bad_share, max_left_out_share)
    return table


def _build(source: Source, map_fn: MapFn, encoder: GroupEncoder, folder: Path, num_workers: int | None) -> None:
    hint = source.num_rows_hint()
    if num_workers is None:
        many = hint is None or hint >= _ROWS_WORTH_WORKERS
        num_workers = min(16, os.cpu_count() or 1) if many else 1
    logger.info("tokenising %s (%s rows) with %d worker(s)", source.name, hint or "unknown number of", num_workers)
    began = time.perf_counter()
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        report = TableReport()
        writer = _TableWriter(aside)
        digests = array("Q")
        with progress_bar(f"tokenise {source.name}", hint, "row") as bar:
            for num_rows, rows, left_out in _encoded_chunks(source, map_fn, encoder, num_workers):
                report.num_rows += num_rows
                for item in left_out:
                    report.add(item)
                digests.extend(_digest_of_tokens(row.group) for row in rows)
                writer.write(rows)
                bar.update(num_rows)
        writer.close()
        report.num_groups = writer.num_groups
        report.num_duplicates = len(digests) - len(np.unique(np.frombuffer(digests, dtype=np.uint64)))
        info = {"source": source.name, "num_groups": writer.num_groups, "report": report.to_json()}
        with (aside / "table.json").open("w", encoding="utf-8") as file:
            json.dump(info, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    logger.info("tokenised %d rows in %.1f s", report.num_rows, time.perf_counter() - began)


def _check_shares(table: GroupTable, name: str, max_bad_share: float, max_left_out_share: float) -> None:
    report = table.report
    left_out = sum(report.reasons.values())
    problem = None
    if report.num_rows == 0:
        problem = f"{name} has no rows"
    elif report.num_groups == 0:
        problem = f"no row of {name} is usable"
    elif report.num_bad > max_bad_share * report.num_rows:
        problem = (
            f"{report.num_bad} of {report.num_rows} rows of {name} do not have the format, more than "
            f"max_bad_share={max_bad_share:g} allows: choose the map function of this format, or mend the rows"
        )
    elif left_out > max_left_out_share * report.num_rows:
        problem = (
            f"{left_out} of {report.num_rows} rows of {name} were left out, more than "
            f"max_left_out_share={max_left_out_share:g} allows: mend the cause, or raise the share"
        )
    if problem:
        details = [f"    {e.location}: {e.detail}" for e in report.examples[:5]]
        raise DataError("\n".join([problem, *report.lines(name), *details]))
