"""What a run's directory holds, read for its report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xrlhf.engine.checkpoint import find_checkpoints
from xrlhf.engine.environment import ENVIRONMENT
from xrlhf.engine.hooks.curves import read_curves
from xrlhf.errors import DataError

__all__ = ["RunRecord", "read_run", "read_runs"]


@dataclass(frozen=True)
class RunRecord:
    """A run, from the files it left.

    Args:
        name: The directory's.
        curves: Every logged scalar as (step, value) points.
        starts: Names of the folders of its starts, oldest first; each is the time of one.
        checkpoints: Names of its checkpoints, newest first.
        data: ``data_report.json``; empty where there is none.
        samples: Lines of ``samples.jsonl``, as they were written; empty where there are none.
        recipe: The resolved recipe as text; None where there is none.
        environment: What the last start ran on, as text; None where it did not say.
    """

    name: str
    curves: Mapping[str, list[tuple[int, float]]]
    starts: tuple[str, ...]
    checkpoints: tuple[str, ...]
    data: Mapping[str, Mapping[str, Any]]
    samples: tuple[Mapping[str, Any], ...]
    recipe: str | None
    environment: str | None

    @property
    def last_step(self) -> int:
        """The last step that anything was logged of."""
        return max((points[-1][0] for points in self.curves.values()), default=0)

    def last(self, name: str) -> float | None:
        """The last value of a curve; None where it was never logged."""
        points = self.curves.get(name)
        return points[-1][1] if points else None

    def mean(self, name: str) -> float | None:
        """The mean of a curve over the logged points after the first; None where it was not logged twice."""
        values = [value for _, value in self.curves.get(name, [])[1:]]
        return sum(values) / len(values) if values else None


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Several runs, called by their paths where two directories have one name.

    Raises:
        DataError: As :func:`read_run`, or one directory is named twice.
    """
    runs = [read_run(folder) for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise DataError("a run is named twice: name each directory once")
    names = Counter(run.name for run in runs)
    return [
        replace(run, name=str(folder)) if names[run.name] > 1 else run
        for run, folder in zip(runs, folders, strict=True)
    ]


def read_run(folder: Path) -> RunRecord:
    """Read a run's directory; files that it does not have are left out.

    Raises:
        DataError: It is no directory, or holds no trace of a run, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such directory; name the work_dir of a run, such as work_dirs/NAME")
    curves = read_curves(folder)
    starts = tuple(sorted(path.parent.name for path in folder.glob("*/vis_data")))
    if not curves:
        raise DataError(f"{folder} holds no logged step (TIMESTAMP/vis_data/scalars.json): name the work_dir of a run")
    environments = [folder / start / ENVIRONMENT for start in starts]
    return RunRecord(
        name=folder.resolve().name,
        curves=curves,
        starts=starts,
        checkpoints=tuple(item.path.name for item in find_checkpoints(folder)),
        data=_read_json(folder / "data_report.json") or {},
        samples=tuple(_read_lines(folder / "samples.jsonl")),
        recipe=_recipe_of(folder),
        environment=next((_read_text(path) for path in reversed(environments) if path.is_file()), None),
    )


def _recipe_of(folder: Path) -> str | None:
    """The newest recipe in the folder: the one that the last start wrote."""
    found = sorted(folder.glob("*.py"), key=lambda path: path.stat().st_mtime)
    return _read_text(found[-1]) if found else None


def _read_text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _read_json(file: Path) -> Any:
    if not file.is_file():
        return None
    try:
        return json.loads(_read_text(file))
    except ValueError as error:
        raise DataError(f"{file} is damaged: {error}; remove it to make a report without it") from error


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """Rows of JSON Lines; one that a killed run left unfinished is passed over."""
    rows = []
    for line in _read_text(file).splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
