"""A finished report, read so that its models can stand beside others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xrlhf.errors import DataError
from xrlhf.evaluation.benchmark_data import LeftOut, ReadFile
from xrlhf.evaluation.benchmark_scores import BenchmarkScores, Example
from xrlhf.evaluation.benchmarks import BENCHMARKS, ScoredRow
from xrlhf.evaluation.report.content import SCHEMA, SCHEMA_VERSION
from xrlhf.evaluation.report.files import REPORT, SCORES
from xrlhf.evaluation.report.model_run import ModelRun

__all__ = ["read_report"]

_ROW = ("subset", "ranks", "row_id", "location", "details", "prompt", "content", "scores", "lengths")
_LISTS = ("ranks", "scores", "lengths")


def read_report(path: str) -> tuple[list[ModelRun], list[tuple[str, ReadFile]]]:
    """The models of a report with all their scores, and the files they were scored on.

    Args:
        path: The directory, or its ``report.json``.

    Raises:
        DataError: It is no report, one of another version, or damaged.
    """
    place = Path(path).expanduser()
    folder = place.parent if place.name == REPORT else place
    report = _parse(folder / REPORT, (folder / REPORT).read_text(encoding="utf-8"))
    found = (report.get("schema"), report.get("schema_version")) if isinstance(report, dict) else (None, None)
    if found != (SCHEMA, SCHEMA_VERSION):
        raise DataError(
            f"{folder / REPORT}: its schema is {found[0]} version {found[1]}; expected {SCHEMA} version "
            f"{SCHEMA_VERSION}: score the model again"
        )
    try:
        runs = {model["name"]: ModelRun(model.pop("name"), model) for model in report["models"]}
        for benchmark in report["benchmarks"]:
            for result in benchmark["results"]:
                runs[result["model"]].scores[_known(benchmark["name"])] = BenchmarkScores(
                    left_out=[LeftOut(**row) for row in result["left_out"]["rows"]],
                    num_at_limit=result["num_at_limit"],
                    examples=[Example(**example) for example in result["examples"]],
                )
        with (folder / SCORES).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = _parse(folder / SCORES, line, number)
                if "scores" in row:
                    runs[row["model"]].scores[row["benchmark"]].rows.append(_row(row))
        files = [(file.pop("benchmark"), ReadFile(**file)) for file in report["data"]]
    except OSError as error:
        raise DataError(f"{folder / SCORES}: cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: is no whole report ({error}): score the model again") from error
    if empty := [name for run in runs.values() for name, scores in run.scores.items() if not scores.rows]:
        raise DataError(f"{folder / SCORES}: has no scores of {empty[0]}: score the model again")
    return list(runs.values()), files


def _known(name: str) -> str:
    if name not in BENCHMARKS:
        raise DataError(f"benchmark {name!r} of the report is not known; known are {', '.join(BENCHMARKS)}")
    return name


def _parse(file: Path, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        where = f"{file}:{line}" if line else str(file)
        raise DataError(f"{where}: is not valid JSON ({error})") from error


def _row(row: dict[str, Any]) -> ScoredRow:
    values: dict[str, Any] = {name: tuple(row[name]) if name in _LISTS else row[name] for name in _ROW}
    return ScoredRow(**values)
