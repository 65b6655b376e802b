"""Benchmark files: read, recognised, and gathered by benchmark."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from xrlhf.data.reasons import RowError
from xrlhf.data.sources import FilesSource, Source, open_source
from xrlhf.errors import DataError
from xrlhf.evaluation.benchmarks import Benchmark, BenchmarkRow, recognise

__all__ = ["BenchmarkData", "LeftOut", "ReadFile", "read_benchmarks"]


@dataclass(frozen=True)
class LeftOut:
    """A row that has no score.

    Args:
        location: File and line.
        reason: The short name of :class:`~xrlhf.data.reasons.Reason`.
        detail: One line.
    """

    location: str
    reason: str
    detail: str

    @classmethod
    def of(cls, location: str, error: RowError) -> LeftOut:
        return cls(location, str(error.reason), error.detail)


@dataclass(frozen=True)
class ReadFile:
    """One file of a benchmark.

    Args:
        name: As it was found.
        digest: Hash of its content.
        num_rows: Rows in it, those left out included.
    """

    name: str
    digest: str
    num_rows: int


@dataclass
class BenchmarkData:
    """All rows of one benchmark, from all files.

    Args:
        benchmark: Which.
        files: Where they are from.
        rows: In order.
        left_out: Rows that could not be read.
    """

    benchmark: Benchmark
    files: list[ReadFile] = field(default_factory=list)
    rows: list[BenchmarkRow] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def missing_subsets(self) -> list[str]:
        """Subsets that the benchmark has and the files have not."""
        found = {row.subset for row in self.rows}
        return [name for name in self.benchmark.expected if name not in found]

    def incomplete_subsets(self) -> list[str]:
        """Subsets with another number of rows than the benchmark has, each with both numbers."""
        found = Counter(row.subset for row in self.rows)
        return [
            f"{name}: {found[name]} of {count} rows"
            for name, count in self.benchmark.expected.items()
            if count and 0 < found[name] != count
        ]


def read_benchmarks(
    specs: Sequence[str], *, benchmark: Benchmark | None = None, skip_bad: bool = False
) -> list[BenchmarkData]:
    """Read files and gather them by benchmark, in the order of their first file.

    Args:
        specs: Files, folders, globs or hub names.
        benchmark: Which one all of them are of; by default the first readable row of each file tells.
        skip_bad: Leave a row without the format of its benchmark out and name it, rather than stop.

    Raises:
        DataError: A file cannot be read, has no rows, is named twice, or is of no benchmark; a row is bad.
    """
    gathered: dict[str, BenchmarkData] = {}
    seen: set[str] = set()
    for source in (part for spec in specs for part in _files(spec)):
        place = os.path.realpath(source.name)
        if place in seen:
            raise DataError(f"{source.name}: named twice in --data")
        seen.add(place)
        _read_file(source, gathered, benchmark, skip_bad)
    for data in gathered.values():
        if not data.rows:
            first = data.left_out[0]
            raise DataError(f"{first.location}: {first.detail} (no row of {data.benchmark.title} could be read)")
    return list(gathered.values())


def _files(spec: str) -> Iterator[Source]:
    """A source for each file, so that each is recognised by itself."""
    source = open_source(spec)
    if not isinstance(source, FilesSource):
        yield source
        return
    for file in source.files:
        yield FilesSource(file.path)


def _read_file(source: Source, gathered: dict[str, BenchmarkData], chosen: Benchmark | None, skip_bad: bool) -> None:
    benchmark = chosen
    rows: list[BenchmarkRow] = []
    left_out: list[LeftOut] = []
    num_rows = 0
    for raw in source.rows():
        num_rows += 1
        try:
            if isinstance(raw.value, RowError):
                raise raw.value
            if benchmark is None:
                benchmark = recognise(raw.value, raw.location)
            rows.append(benchmark.read(raw.value, raw.location))
        except RowError as error:
            if error.reason.bad and not skip_bad:
                called = f" ({benchmark.title})" if benchmark is not None else ""
                raise DataError(
                    f"{raw.location}: {error.detail}{called}; --skip-bad leaves such rows out and names them"
                ) from error
            left_out.append(LeftOut.of(raw.location, error))
    if benchmark is None:
        raise DataError(f"{source.name}: none of {num_rows} rows can be read; the first: {left_out[0].detail}")
    data = gathered.setdefault(benchmark.name, BenchmarkData(benchmark))
    data.files.append(ReadFile(source.name, source.fingerprint(), num_rows))
    data.rows += rows
    data.left_out += left_out
