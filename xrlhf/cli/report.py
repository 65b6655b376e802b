"""``xrlhf report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = ["report"]


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="WORK_DIR...", help="Directories of runs, such as work_dirs/NAME.")
    ],
    out: Annotated[
        Optional[Path], typer.Option(help="The page to write; WORK_DIR/run.html if there is one run.")
    ] = None,
) -> None:
    """Write one page on a run, or on several side by side: curves, speed, data, validation, samples, recipe.

    The page is one HTML file that loads nothing. A run may be going on meanwhile.

    Examples:

      xrlhf report work_dirs/tiny_reward_cpu

      xrlhf report work_dirs/lr_1e-4 work_dirs/lr_3e-4 --out compared.html
    """
    from datetime import datetime

    from xrlhf.errors import ConfigError, DataError
    from xrlhf.files import replacing
    from xrlhf.run_report import read_runs, render_runs

    if out is None and len(runs) > 1:
        raise ConfigError("several runs make one page: say with --out FILE.html where it belongs")
    place = runs[0] / "run.html" if out is None else out
    if place.is_dir():
        raise DataError(f"{place} is a folder: name a file to write")
    page = render_runs(read_runs(runs), created=datetime.now())
    try:
        with replacing(place) as aside:
            # Data may hold half a surrogate pair, which has no UTF-8.
            aside.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{place} cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {place}")
