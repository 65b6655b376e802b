"""Models and finished reports, gathered into one list of scored models."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from xrlhf.errors import ConfigError
from xrlhf.evaluation.benchmark_data import BenchmarkData, ReadFile, read_benchmarks
from xrlhf.evaluation.benchmark_scores import score_benchmark
from xrlhf.evaluation.benchmarks import Benchmark
from xrlhf.evaluation.report.files import is_report
from xrlhf.evaluation.report.model_run import ModelRun, describe_model
from xrlhf.evaluation.report.reading import read_report
from xrlhf.evaluation.scorer import Scorer
from xrlhf.models.location import pretrained_location

__all__ = ["gather_runs"]


def gather_runs(
    models: Sequence[str],
    data: Sequence[str],
    load: Callable[[str], Scorer],
    *,
    benchmark: Benchmark | None = None,
    skip_bad: bool = False,
    num_examples: int = 10,
    **settings: Any,
) -> tuple[list[ModelRun], list[tuple[str, ReadFile]]]:
    """Score every model that is one, and read every finished report.

    Args:
        models: Directories or hub names of reward models, or directories of reports, in the order they shall stand in.
        data: Files of benchmarks; needed where there is a model.
        load: Loads a model; one is held at a time.
        benchmark: Which one all files are of; by default each file tells.
        skip_bad: Leave bad rows out and name them.
        num_examples: Disagreements to keep for each model and benchmark.
        settings: Options of the command that change scores, for the report.

    Returns:
        The models with unique names, and each file with the name of its benchmark.

    Raises:
        UserError: A model, report or file cannot be used.
    """
    fresh = [path for path in models if not is_report(path)]
    for path in fresh:
        pretrained_location(path, "model")
    if fresh and not data:
        raise ConfigError(f"{fresh[0]} is no finished report, so it has to be scored: name files with --data")
    if data and not fresh:
        raise ConfigError("every MODEL is a finished report, and --data names files to score: leave --data out")
    earlier = {path: read_report(path) for path in models if is_report(path)}
    gathered = read_benchmarks(data, benchmark=benchmark, skip_bad=skip_bad) if fresh else []
    runs: list[ModelRun] = []
    for path in models:
        if path in earlier:
            runs += earlier[path][0]
        else:
            runs.append(_score(path, gathered, load, skip_bad, num_examples, settings))
            # The weights are gone before the next model's come.
            gc.collect()
    _make_names_unique(runs)
    files = [(part.benchmark.name, file) for part in gathered for file in part.files]
    files += [file for _, of_report in earlier.values() for file in of_report]
    return runs, list(dict.fromkeys(files))


def _score(
    path: str,
    gathered: Sequence[BenchmarkData],
    load: Callable[[str], Scorer],
    skip_bad: bool,
    num_examples: int,
    settings: dict[str, Any],
) -> ModelRun:
    scorer = load(path)
    run = ModelRun(PurePath(path).name or path, describe_model(path, scorer, **settings))
    for part in gathered:
        run.scores[part.benchmark.name] = score_benchmark(scorer, part, skip_bad=skip_bad, num_examples=num_examples)
    return run


def _make_names_unique(runs: Sequence[ModelRun]) -> None:
    """Models of one folder name are called by their paths, and numbered where these are the same too."""
    for rename in (lambda run, _: str(run.about["path"]), lambda run, seen: f"{run.name} ({seen})"):
        counts = Counter(run.name for run in runs)
        seen: Counter[str] = Counter()
        for run in runs:
            if counts[name := run.name] > 1:
                seen[name] += 1
                run.name = rename(run, seen[name])
