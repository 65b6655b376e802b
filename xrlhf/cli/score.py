"""``xrlhf score``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

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
from xrlhf.errors import ConfigError

if TYPE_CHECKING:
    from xrlhf.evaluation.scored_rows import BestOf

__all__ = ["ALL_RESPONSES", "score"]

ALL_RESPONSES = "all"
"""What ``--best-of`` means when no number follows it."""


def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A reward model: a directory or a hub name.")],
    data: Annotated[Path, typer.Option(help="JSON Lines (or JSON, gzip, Parquet) with conversations.")],
    out: Annotated[Path, typer.Option(help="JSON Lines to write: every row with its score.")],
    format_name: FormatName = None,
    format_options: FormatOptions = None,
    device: DeviceName = None,
    dtype: Dtype = "float32",
    max_length: MaxLength = None,
    truncation: TruncationName = "drop",
    token_budget: TokenBudget = 16384,
    best_of: Annotated[
        Optional[str],
        typer.Option(
            metavar="[N]", help="Write the best response of each row, with its score; with N, of its first N responses."
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Write rows that cannot be scored with an 'error' in place of stopping.")
    ] = False,
) -> None:
    """Score every conversation of a file.

    A row may hold messages; text; prompt + response; prompt + responses; prompt + chosen + rejected; or chosen +
    rejected; with --format, whatever that format has. It is written back with "score", or with "scores" in the row's
    own order where it holds several; after --best-of with the best "response", its "score" and "best_index", and
    "scores".

    Examples:

      xrlhf score reward_hf --data answers.jsonl --out scored.jsonl

      xrlhf score reward_hf --data samples.jsonl --out best.jsonl --best-of
    """
    from xrlhf.devices import find_device
    from xrlhf.evaluation.score_file import score_file
    from xrlhf.evaluation.scorer import Scorer

    rows = None if best_of is None else _best_of(best_of)
    map_fn = map_fn_of(format_name, format_options)
    chosen = find_device(device)
    chosen.set_device(0)
    scorer = Scorer.from_pretrained(
        model,
        device=chosen,
        dtype=dtype,
        max_length=max_length,
        truncation=truncation,  # type: ignore[arg-type]
        token_budget=token_budget,
    )
    summary = score_file(scorer, data, out, skip_bad=skip_bad, map_fn=map_fn, rows=rows)
    typer.echo(
        f"wrote {out}: {summary.num_scores} scores of {summary.num_rows} rows"
        + (f", {summary.num_bad} rows not scored" if summary.num_bad else "")
    )
    if rows is not None:
        typer.echo(rows.summary())


def _best_of(text: str) -> BestOf:
    from xrlhf.evaluation.scored_rows import BestOf

    if text != ALL_RESPONSES and not text.isdecimal():
        raise ConfigError(f"--best-of {text}: a whole number of responses may follow, or nothing for all of them")
    return BestOf(None if text == ALL_RESPONSES else int(text))
