"""Tokenised groups on disk: built once, memory-mapped ever after.

A table is a folder of flat arrays. Reading a group touches the few pages it lies on, so ten million groups need no
more memory than ten thousand. A table is written aside and renamed when whole; its name is a digest of the data's
content, the map function, the tokenizer and the settings, so a second start finds it and any change makes another.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import logging
import marshal
import mmap
import os
import platform
import shutil
import time
import traceback
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.data.sources import Chunk, RawRow, Source
from xrlhf.errors import DataError, XrlhfError
from xrlhf.progress import progress_bar
from xrlhf.structures import Group, TokenizedGroup
from xrlhf.version import __version__

__all__ = [
    "EncodedChunk",
    "GroupTable",
    "LeftOut",
    "TableReport",
    "build_table",
    "check_shares",
    "default_cache_dir",
    "encode_chunk",
    "map_fn_identity",
    "map_row",
    "prompt_key",
]

logger = logging.getLogger("xrlhf")

MapFn = Callable[[Mapping[str, Any]], Group]

_FORMAT = 4
_CHUNK_ROWS = 2048
_EXAMPLES = 20
_ROWS_WORTH_WORKERS = 20_000
_MOST_WORKERS = 16
_GROUPS_AT_ONCE = 1 << 20
_DTYPES = {
    "tokens": np.int32,
    "lengths": np.int32,
    "length_ends": np.int64,
    "token_ends": np.int64,
    "ratings": np.float32,
    "attributes": np.float32,
    "is_target": np.bool_,
    "num_targets": np.int32,
    "rows": np.int64,
    "prompt_keys": np.uint64,
}


def default_cache_dir() -> Path:
    """Where tables are kept: ``XRLHF_CACHE``, else ``xrlhf`` in the user's cache folder."""
    if "XRLHF_CACHE" in os.environ:
        return Path(os.environ["XRLHF_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "xrlhf"


def map_fn_identity(map_fn: MapFn) -> str:
    """Name, bound arguments and module source of a map function: a change in any of them makes a new table."""
    arguments: list[Any] = []
    function: Any = map_fn
    if isinstance(function, partial):
        arguments += [function.args, function.keywords]
        function = function.func
    if not hasattr(function, "__qualname__"):
        arguments.append(getattr(function, "__dict__", {}))
        function = type(function)
    digest = hashlib.blake2b(_code_of(function), digest_size=8).hexdigest()
    bound = json.dumps(
        arguments, sort_keys=True, default=lambda value: map_fn_identity(value) if callable(value) else str(value)
    )
    return f"{function.__module__}.{function.__qualname__}:{bound}:{digest}"


def _code_of(function: Any) -> bytes:
    """The source of the module of a function; of the function alone, or its byte code, where it was typed in."""
    for owner in (inspect.getmodule(function), function):
        with suppress(OSError, TypeError):
            return inspect.getsource(owner).encode()  # type: ignore[arg-type]
    return marshal.dumps(getattr(function, "__code__", None))


def _called(map_fn: MapFn) -> str:
    function = map_fn.func if isinstance(map_fn, partial) else map_fn
    return str(getattr(function, "__name__", type(function).__name__))


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
        if self.reasons[left_out.reason.value] <= _EXAMPLES:
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


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    """The file as an array that is read, page by page, where it is looked at."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Shuffled groups lie anywhere among the tokens. Without this advice the kernel reads far more around each of them
    # than the group itself: measured on a cold file of 4 GiB, 5 ms a group in place of 0.1 ms.
    if path.stem == "tokens" and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype=dtype)


class GroupTable:
    """A sequence of :class:`TokenizedGroup` read from a folder on disk.

    Args:
        folder: A folder made by :func:`build_table`.
        dataset: Written into every group read, to tell sources apart.

    Raises:
        DataError: A file of the table is missing, cut short or otherwise damaged.
    """

    def __init__(self, folder: Path, dataset: int = 0) -> None:
        self.folder = folder
        self.dataset = dataset
        try:
            info = json.loads((folder / "table.json").read_text(encoding="utf-8"))
            self.report = TableReport.from_json(info["report"])
            self.source_name: str = info["source"]
            self.size: int = info["num_groups"]
            self.attributes: tuple[str, ...] = tuple(info["attributes"])
            self.has_targets: bool = info["has_targets"]
            self._arrays = {name: _mapped(folder / f"{name}.bin", dtype) for name, dtype in _DTYPES.items()}
            self._check_sizes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: the cached table is damaged ({error}); delete this folder") from error

    def _check_sizes(self) -> None:
        arrays = self._arrays
        ends = {name: int(arrays[name][-1]) if len(arrays[name]) else 0 for name in ("length_ends", "token_ends")}
        expected = dict.fromkeys(arrays, self.size)
        expected |= {"lengths": ends["length_ends"], "ratings": ends["length_ends"], "tokens": ends["token_ends"]}
        expected["attributes"] = ends["length_ends"] * len(self.attributes)
        expected["is_target"] = ends["token_ends"] if self.has_targets else 0
        for name, size in expected.items():
            if len(arrays[name]) != size:
                raise ValueError(f"{name}.bin holds {len(arrays[name])} values, expected {size}")

    def name_source(self, name: str) -> None:
        """Call the source ``name`` in reports: the same content may lie elsewhere than when the table was built.

        Places in a source of several files keep the paths of then; their lines are the same.
        """
        old, self.source_name = self.source_name, name
        self.report.examples = [
            replace(example, location=name + example.location.removeprefix(old))
            if example.location.startswith(old)
            else example
            for example in self.report.examples
        ]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> TokenizedGroup:
        arrays = self._arrays
        if not 0 <= index < self.size:
            raise IndexError(f"group {index} of a table of {self.size}")
        length_start = int(arrays["length_ends"][index - 1]) if index else 0
        token_start = int(arrays["token_ends"][index - 1]) if index else 0
        lengths = arrays["lengths"][length_start : int(arrays["length_ends"][index])]
        token_stop = int(arrays["token_ends"][index])
        tokens = np.array(arrays["tokens"][token_start:token_stop])
        prompt, *responses = np.split(tokens, np.cumsum(lengths[:-1]))
        # Ratings and attributes lie beside the lengths: the prompt's place is unused.
        length_stop = int(arrays["length_ends"][index])
        ratings = np.array(arrays["ratings"][length_start + 1 : length_stop])
        number = len(self.attributes)
        attributes = np.array(arrays["attributes"][(length_start + 1) * number : length_stop * number])
        return TokenizedGroup(
            prompt,
            tuple(responses),
            None if np.isnan(ratings).all() else ratings,
            dataset=self.dataset,
            row=int(arrays["rows"][index]),
            attributes=attributes.reshape(-1, number) if number else None,
            is_target=np.array(arrays["is_target"][token_start:token_stop]) if self.has_targets else None,
        )

    def num_tokens(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Tokens that each group costs, int64: of all groups, or of those at ``indices``."""
        ends = self._arrays["token_ends"]
        if indices is None:
            return np.diff(ends, prepend=0)
        starts = np.where(indices > 0, ends[np.maximum(indices - 1, 0)], 0)
        return ends[indices] - starts

    def num_targets(self, indices: np.ndarray) -> np.ndarray:
        """Target tokens of all responses of the groups at ``indices``, int64; 0 where the table knows of none."""
        return self._arrays["num_targets"][indices].astype(np.int64)

    @property
    def total_tokens(self) -> int:
        return int(self._arrays["token_ends"][-1]) if self.size else 0

    @property
    def prompt_keys(self) -> np.ndarray:
        """(N,) uint64, a digest of each group's prompt (of its responses where it has none); equal ones are equal."""
        return self._arrays["prompt_keys"]

    def total_conversation_tokens(self) -> int:
        """Tokens the same conversations would cost one by one, every prompt computed K times."""
        total = 0
        lengths, ends = self._arrays["lengths"], self._arrays["length_ends"]
        for start in range(0, self.size, _GROUPS_AT_ONCE):
            stop = min(self.size, start + _GROUPS_AT_ONCE)
            first = int(ends[start - 1]) if start else 0
            part = np.asarray(lengths[first : int(ends[stop - 1])], dtype=np.int64)
            prompt_at = np.concatenate([[0], np.asarray(ends[start : stop - 1]) - first])
            responses = np.diff(np.concatenate([prompt_at, [len(part)]])) - 1
            total += int(part.sum() + (part[prompt_at] * (responses - 1)).sum())
        return total


@dataclass(frozen=True)
class EncodedChunk:
    """What became of the rows of a chunk, in a few arrays that are cheap to hand from process to process.

    Args:
        num_rows: Rows read.
        columns: The chunk's part of every file of the table; ``length_ends`` and ``token_ends`` count from the
            beginning of the chunk.
        digests: (N,) uint64, a digest of the tokens of each group; equal groups have equal ones.
        left_out: Rows left out, in their order.
    """

    num_rows: int
    columns: dict[str, np.ndarray]
    digests: np.ndarray
    left_out: list[LeftOut]


def prompt_key(group: Group) -> int:
    """A digest of a group's prompt, by which it falls into a fold."""
    # Whole texts have no prompt of their own: each then stands for itself.
    said = group.prompt or group.responses
    text = said if isinstance(said, str) else json.dumps(said, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def encode_chunk(chunk: Chunk, map_fn: MapFn, encoder: GroupEncoder) -> EncodedChunk:
    """Parse, map and encode the rows of one chunk.

    Raises:
        DataError: The map function fails with anything but :class:`RowError`, or gives no group.
    """
    raw_rows = list(chunk.rows())
    mapped = [map_row(raw, map_fn) for raw in raw_rows]
    tokenized = iter(encoder.encode([item for item in mapped if isinstance(item, Group)]))
    groups: list[TokenizedGroup] = []
    prompt_keys: list[int] = []
    left_out: list[LeftOut] = []
    for raw, item in zip(raw_rows, mapped, strict=True):
        result = next(tokenized) if isinstance(item, Group) else item
        if isinstance(result, RowError):
            left_out.append(LeftOut(raw.location, result.reason, result.detail))
        else:
            assert isinstance(item, Group)
            groups.append(replace(result, row=raw.row))
            prompt_keys.append(prompt_key(item))
    digests = np.array([_digest_of_tokens(group) for group in groups], dtype=np.uint64)
    columns = _columns_of(groups, prompt_keys, len(encoder.attributes))
    return EncodedChunk(len(raw_rows), columns, digests, left_out)


def _columns_of(groups: list[TokenizedGroup], prompt_keys: list[int], num_attributes: int) -> dict[str, np.ndarray]:
    """The groups as they lie in a table of their own."""
    pieces = [ids for group in groups for ids in (group.prompt_ids, *group.response_ids)]
    lengths = np.array([len(ids) for ids in pieces], dtype=np.int64)
    length_ends = np.cumsum([1 + len(group.response_ids) for group in groups], dtype=np.int64)
    ratings: list[float] = []
    for group in groups:
        # The prompt's place is unused.
        ratings += [np.nan, *([np.nan] * len(group.response_ids) if group.ratings is None else group.ratings)]
    attributes: list[np.ndarray] = []
    for group in groups:
        unused = np.full((1, num_attributes), np.nan, dtype=np.float32)
        attributes += [unused, unused[:0] if group.attributes is None else group.attributes]
    targets = [group.is_target for group in groups if group.is_target is not None]
    columns = {
        "tokens": np.concatenate(pieces) if pieces else [],
        "lengths": lengths,
        "length_ends": length_ends,
        "token_ends": np.cumsum(lengths)[length_ends - 1],
        "ratings": ratings,
        "attributes": np.concatenate(attributes).ravel() if attributes else [],
        "is_target": np.concatenate(targets) if targets else [],
        "num_targets": [_num_targets(group) for group in groups],
        "rows": [group.row for group in groups],
        "prompt_keys": np.array(prompt_keys, dtype=np.uint64),
    }
    return {name: np.asarray(columns[name], dtype=dtype) for name, dtype in _DTYPES.items()}


def _num_targets(group: TokenizedGroup) -> int:
    if group.is_target is None:
        return 0
    of_prompt = int(group.is_target[: len(group.prompt_ids)].sum())
    return int(group.is_target.sum()) + of_prompt * (len(group.response_ids) - 1)


def map_row(raw: RawRow, map_fn: MapFn, *, needs_response: bool = True) -> Group | RowError:
    """What a map function makes of a row, or the reason why the row is left out.

    Args:
        raw: The row.
        map_fn: The map function.
        needs_response: False where the prompt alone is of use.

    Raises:
        DataError: The map function fails with anything but :class:`RowError`, or gives no group.
    """
    if isinstance(raw.value, RowError):
        return raw.value
    try:
        group = map_fn(raw.value)
    except RowError as error:
        return error
    except XrlhfError:
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(
            f"{raw.location}: map function {_called(map_fn)} failed with {type(error).__name__}: {error} "
            f"({at.filename}:{at.lineno}); for a row to leave out it raises RowError"
        ) from error
    if not isinstance(group, Group) or (needs_response and not group.responses):
        found = "a Group without responses" if isinstance(group, Group) else kind_of(group)
        raise DataError(
            f"{raw.location}: map function {_called(map_fn)} returned {found}; expected a Group with one or more"
        )
    return group


_worker: tuple[MapFn, GroupEncoder] | None = None


def _start_worker(map_fn: MapFn, encoder: GroupEncoder) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # All that is loaded by now stays: the garbage collector need not walk over it again and again.
    gc.freeze()
    _worker = (map_fn, encoder)


def _work(chunk: Chunk) -> EncodedChunk:
    assert _worker is not None
    return encode_chunk(chunk, *_worker)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _encoded_chunks(
    source: Source, map_fn: MapFn, encoder: GroupEncoder, num_workers: int | None
) -> Iterator[EncodedChunk]:
    chunks: Iterator[Chunk] = iter(source.chunks(_CHUNK_ROWS))
    if num_workers is None:
        # A worker takes seconds to start: they come in only where the source proves to be worth it.
        hint = source.num_rows_hint()
        num_rows = hint if hint is not None and hint >= _ROWS_WORTH_WORKERS else 0
        while num_rows < _ROWS_WORTH_WORKERS and (chunk := next(chunks, None)) is not None:
            num_rows += chunk.num_rows
            yield encode_chunk(chunk, map_fn, encoder)
        num_workers = min(_MOST_WORKERS, _num_cores())
    if num_workers > 1:
        yield from _encoded_in_pool(chunks, map_fn, encoder, num_workers)
    else:
        for chunk in chunks:
            yield encode_chunk(chunk, map_fn, encoder)


def _encoded_in_pool(
    chunks: Iterator[Chunk], map_fn: MapFn, encoder: GroupEncoder, num_workers: int
) -> Iterator[EncodedChunk]:
    pool = ProcessPoolExecutor(
        num_workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(map_fn, encoder)
    )
    waiting: deque[Future[EncodedChunk]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_work, chunk))
            # A bounded queue keeps memory flat however long the source is.
            if len(waiting) >= 4 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"one of {num_workers} tokenising processes died, most likely for want of memory: set num_workers lower"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _TableWriter:
    """Appends groups to the flat files of a table."""

    def __init__(self, folder: Path) -> None:
        self.num_groups = 0
        self._files = {name: (folder / f"{name}.bin").open("wb") for name in _DTYPES}
        self._ends = {"length_ends": 0, "token_ends": 0}

    def write(self, columns: Mapping[str, np.ndarray]) -> None:
        for name, values in columns.items():
            if name in self._ends and len(values):
                values = values + self._ends[name]
                self._ends[name] = int(values[-1])
            self._files[name].write(values.tobytes())
        self.num_groups += len(columns["rows"])

    def sync(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self._files.values():
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
        DataError: Too many rows left out, or none kept (the message holds the counts and the first places); a bug in
            the map function; a cache that cannot be written to, or holds a damaged table.
    """
    for name, share in (("max_bad_share", max_bad_share), ("max_left_out_share", max_left_out_share)):
        if not 0 <= share <= 1:
            raise DataError(f"{name} must lie between 0 and 1, got {share:g}")
    cache_dir = cache_dir or default_cache_dir()
    identity = [_FORMAT, __version__, source.fingerprint(cache_dir), map_fn_identity(map_fn), encoder.fingerprint()]
    key = hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()
    folder = cache_dir / "tables" / key
    if not (folder / "table.json").exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _alone(folder.with_suffix(".lock"), source.name):
                if not (folder / "table.json").exists():
                    _build(source, map_fn, encoder, folder, num_workers)
        except OSError as error:
            raise DataError(
                f"the table of {source.name} cannot be kept in {folder.parent} ({error.strerror or error}): make room "
                "there, or name another folder with cache_dir or XRLHF_CACHE"
            ) from error
    table = GroupTable(folder)
    table.name_source(source.name)
    check_shares(table.report, source.name, max_bad_share, max_left_out_share)
    return table


@contextmanager
def _alone(lock_file: Path, source_name: str) -> Iterator[None]:
    """Holds a lock that other processes building the same table wait for."""
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.info("waiting for another process that tokenises %s", source_name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(source: Source, map_fn: MapFn, encoder: GroupEncoder, folder: Path, num_workers: int | None) -> None:
    hint = source.num_rows_hint()
    logger.info("tokenising %s (%s)", source.name, "rows unknown" if hint is None else f"about {hint:,} rows")
    began = time.perf_counter()
    # The lock is held, so whatever this machine has here was left by a process that died. Other machines may not see
    # the lock: some shared file systems keep locks to themselves.
    aside = folder.with_name(f"{folder.name}.{platform.node()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    aside.mkdir()
    writer = _TableWriter(aside)
    try:
        report = TableReport()
        digests = array("Q")
        with progress_bar(f"tokenise {source.name}", hint, "row") as bar:
            for encoded in _encoded_chunks(source, map_fn, encoder, num_workers):
                report.num_rows += encoded.num_rows
                for item in encoded.left_out:
                    report.add(item)
                digests.frombytes(encoded.digests.tobytes())
                writer.write(encoded.columns)
                bar.update(encoded.num_rows)
        writer.sync()
        writer.close()
        report.num_groups = writer.num_groups
        report.num_duplicates = len(digests) - len(np.unique(np.asarray(digests, dtype=np.uint64)))
        info = {
            "source": source.name,
            "num_groups": writer.num_groups,
            "attributes": list(encoder.attributes),
            "has_targets": encoder.targets is not None,
            "report": report.to_json(),
        }
        with (aside / "table.json").open("w", encoding="utf-8") as file:
            json.dump(info, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            aside.rename(folder)
        except OSError:
            if not (folder / "table.json").exists():
                raise
            logger.info("another machine has finished the same table first")
            shutil.rmtree(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        writer.close()
    seconds = time.perf_counter() - began
    logger.info("tokenised %d rows in %.1f s: %d groups", report.num_rows, seconds, report.num_groups)


def check_shares(report: TableReport, name: str, max_bad_share: float, max_left_out_share: float) -> None:
    """Refuse a source too many of whose rows are of no use.

    Raises:
        DataError: No row, none that is usable, or more left out than allowed.
    """
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
