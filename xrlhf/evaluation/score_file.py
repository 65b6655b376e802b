"""Score a file of conversations: every row comes back, in order, with its scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xrlhf.data.prefetch import prefetch
from xrlhf.data.reasons import RowError
from xrlhf.data.sources import RawRow, open_source
from xrlhf.data.table import MapFn
from xrlhf.errors import DataError
from xrlhf.evaluation.rows import group_of_format, is_single, scorable_group
from xrlhf.evaluation.scorer import Scorer
from xrlhf.files import replacing
from xrlhf.progress import progress_bar
from xrlhf.structures import Group, TokenizedGroup

__all__ = ["ScoreSummary", "score_file"]

_CHUNK_ROWS = 2048


@dataclass
class ScoreSummary:
    """Counts of one scored file."""

    num_rows: int = 0
    num_scores: int = 0
    num_bad: int = 0


def score_file(
    scorer: Scorer, data: Path, out: Path, *, skip_bad: bool = False, map_fn: MapFn | None = None
) -> ScoreSummary:
    """Score the rows of ``data`` into the JSON Lines file ``out``, which appears only when it is complete.

    Args:
        scorer: The reward model.
        data: Any file or folder that :func:`xrlhf.data.sources.open_source` reads.
        out: The file to write; one that exists is replaced.
        skip_bad: Write a row that cannot be scored with an ``error`` in place of a score, rather than stop.
        map_fn: What turns a row into its answers; None for the layouts of :data:`xrlhf.evaluation.rows.LAYOUTS`.
            Scores are written in the order in which the row has the answers.

    Raises:
        DataError: A row cannot be scored; the message names its place and reason, and nothing is written.
    """
    source = open_source(str(data))
    if out.is_dir():
        raise DataError(f"{out} is a folder: name a file to write")
    summary = ScoreSummary()
    try:
        with (
            replacing(out) as aside,
            aside.open("w", encoding="utf-8") as file,
            progress_bar("score", source.num_rows_hint(), "row") as bar,
        ):
            # The next rows are read and tokenised while the device scores these.
            for chunk in prefetch(
                (_encode(scorer, list(chunk.rows()), map_fn) for chunk in source.chunks(_CHUNK_ROWS)), ahead=1
            ):
                results = scorer.score_encoded([encoded for *_, encoded in chunk])
                for (raw, group, _), result in zip(chunk, results, strict=True):
                    if isinstance(group, Group) and not isinstance(result, RowError):
                        result = group.in_row_order(result)
                    single = len(group.responses) == 1 if map_fn is not None and isinstance(group, Group) else None
                    _write(file, raw, result, summary, skip_bad, single)
                bar.update(len(chunk))
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}") from error
    return summary


def _encode(
    scorer: Scorer, rows: list[RawRow], map_fn: MapFn | None
) -> list[tuple[RawRow, Group | RowError, TokenizedGroup | RowError]]:
    """Every row, its group and its tokens, or the reason why it has none."""
    groups = [_group_of(raw) if map_fn is None else group_of_format(raw, map_fn) for raw in rows]
    encoded = iter(scorer.encode([group for group in groups if isinstance(group, Group)]))
    tokens = [group if isinstance(group, RowError) else next(encoded) for group in groups]
    return list(zip(rows, groups, tokens, strict=True))


def _group_of(raw: RawRow) -> Group | RowError:
    if isinstance(raw.value, RowError):
        return raw.value
    try:
        return scorable_group(raw.value)
    except RowError as error:
        return error


def _write(
    file: Any,
    raw: RawRow,
    result: list[float] | RowError,
    summary: ScoreSummary,
    skip_bad: bool,
    single: bool | None = None,
) -> None:
    """Writes one row; ``single`` says whether it gets one ``score``, None that its columns tell."""
    summary.num_rows += 1
    row = dict(raw.value) if not isinstance(raw.value, RowError) else {}
    if isinstance(result, RowError):
        if not skip_bad:
            raise DataError(f"{raw.location}: {result.detail} (--skip-bad writes such rows without a score)")
        summary.num_bad += 1
        # Scores of an earlier run must not pass for this one's.
        row.pop("score", None)
        row.pop("scores", None)
        row["error"] = str(result)
    else:
        summary.num_scores += len(result)
        row.update({"score": result[0]} if (is_single(row) if single is None else single) else {"scores": result})
    file.write(_json_line(row) + "\n")


def _json_line(row: dict[str, Any]) -> str:
    """A row as JSON; what JSON has no type for, such as a date of a Parquet file, becomes text."""
    line = json.dumps(row, ensure_ascii=False, default=str)
    # Half a surrogate pair in a column that is passed through has no UTF-8.
    return line if line.isascii() or _is_utf8(line) else json.dumps(row, default=str)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
