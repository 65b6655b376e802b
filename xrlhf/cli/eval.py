"""``xrlhf eval``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from xrlhf.cli.options import (
    DeviceName,
    Dtype,
    FormatName,
    FormatOptions,
    MaxLength,
    TokenBudget,
    TruncationName,
    map_fn_of,
)

if TYPE_CHECKING:
    from xrlhf.evaluation.scorer import Scorer

__all__ = ["EvalCommand", "evaluate"]

_DATA = "--data"


class EvalCommand(TyperCommand):
    """Lets several files follow one ``--data``, as a shell's wildcard gives them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As any command does, after ``--data A B`` has become ``--data A --data B``."""
        return super().parse_args(ctx, _one_value_each(args))


def _one_value_each(arguments: Sequence[str]) -> list[str]:
    result: list[str] = []
    inside, has_value = False, False
    for argument in arguments:
        if argument.startswith("-"):
            inside, has_value = argument == _DATA, False
        elif inside:
            if has_value:
                result.append(_DATA)
            has_value = True
        result.append(argument)
    return result


def evaluate(
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Reward models (directories or hub names), or directories of reports."),
    ],
    out: Annotated[Path, typer.Option(help="The directory to make: report.html, report.json, scores.jsonl.")],
    data: Annotated[
        Optional[list[str]],
        typer.Option(_DATA, metavar="FILE...", help="Files, folders or globs of benchmark rows; several may follow."),
    ] = None,
    benchmark: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME",
            help="What the files are: reward_bench, reward_bench_2, rm_bench, llmbar, judgebench or pairs; their "
            "columns tell if not given.",
        ),
    ] = None,
    format_name: FormatName = None,
    format_options: FormatOptions = None,
    device: DeviceName = None,
    dtype: Dtype = "float32",
    max_length: MaxLength = None,
    truncation: TruncationName = "drop",
    token_budget: TokenBudget = 16384,
    examples: Annotated[
        int, typer.Option(min=0, help="Disagreements to show with their texts; 0 keeps every text out of the report.")
    ] = 10,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave rows that do not fit the format out, and name them.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report.")] = False,
) -> None:
    """Evaluate reward models on benchmark files, and write a report.

    With several models, each is compared with the first. A finished report may stand in place of a model.

    Examples:

      xrlhf eval reward_hf --data reward_bench_2.parquet --out reports/a

      xrlhf eval model_a model_b --data RM-Bench/*.json pairs.jsonl --out reports/both

      xrlhf eval reports/a reports/b --out reports/compared
    """
    from xrlhf.errors import ConfigError
    from xrlhf.evaluation.benchmarks import BENCHMARKS, find_benchmark, pairs_benchmark
    from xrlhf.evaluation.report import FILES, build_report, write_report
    from xrlhf.evaluation.report.running import gather_runs
    from xrlhf.export.directory import check_new_directory, new_directory

    map_fn = map_fn_of(format_name, format_options)
    if map_fn is not None and benchmark not in (None, "pairs"):
        raise ConfigError(f"--format is for rows of pairs, and --benchmark is {benchmark}: leave one of them out")
    chosen = None if benchmark is None else find_benchmark(benchmark)
    if map_fn is not None:
        chosen = pairs_benchmark(map_fn)
    replace = FILES if overwrite else None
    check_new_directory(out, replace=replace)
    runs, files = gather_runs(
        models,
        data or [],
        lambda path: _load(path, device, dtype, max_length, truncation, token_budget),
        benchmark=chosen,
        skip_bad=skip_bad,
        num_examples=examples,
        dtype=dtype,
    )
    present = [each for name, each in BENCHMARKS.items() if any(name in run.scores for run in runs)]
    report = build_report(runs, present, files, command=shlex.join(["xrlhf", *(ctx.obj or [])]))
    with new_directory(out, replace=replace) as folder:
        write_report(report, runs, folder)
    for line in _summary(report):
        typer.echo(line)
    typer.echo(f"wrote {out / 'report.html'}")


def _load(
    path: str, device: str | None, dtype: str, max_length: int | None, truncation: str, token_budget: int
) -> Scorer:
    from xrlhf.devices import find_device
    from xrlhf.evaluation.scorer import Scorer

    found = find_device(device)
    found.set_device(0)
    return Scorer.from_pretrained(
        path,
        device=found,
        dtype=dtype,
        max_length=max_length,
        truncation=truncation,  # type: ignore[arg-type]
        token_budget=token_budget,
    )


def _summary(report: dict[str, Any]) -> list[str]:
    """A line for each benchmark and model, and one for each comparison."""
    lines = []
    for benchmark in report["benchmarks"]:
        for result in benchmark["results"]:
            first = result["scores"][0]
            shown = "no rows" if first["value"] is None else f"{first['value']:.4f}"
            bounds = "" if first["low"] is None else f" (95 %: {first['low']:.4f} to {first['high']:.4f})"
            lines.append(
                f"{benchmark['title']}, {result['model']}: {first['name']} {shown}{bounds}, {result['num_scored']} rows"
                + (f", {result['left_out']['num_rows']} left out" if result["left_out"]["num_rows"] else "")
                + (f", no rows of {len(result['missing_subsets'])} subsets" if result["missing_subsets"] else "")
            )
        for comparison in benchmark["comparisons"]:
            if comparison["scores"]:
                first = comparison["scores"][0]
                bounds = "" if first["low"] is None else f" (95 %: {first['low']:+.4f} to {first['high']:+.4f})"
                lines.append(
                    f"{benchmark['title']}, {comparison['second']} against {comparison['first']}: "
                    f"{first['difference']:+.4f}{bounds}"
                )
    return lines
