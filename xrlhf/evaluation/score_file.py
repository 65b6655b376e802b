"""Score a file of conversations: every row comes back, in order, with its scores."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xrlhf.data.prefetch import prefetch
from xrlhf.data.reasons import RowError
from xrlhf.data.sources import RawRow, open_source
from xrlhf.data.table import MapFn
from xrlhf.errors import DataError
from xrlhf.evaluation.rows import ScorableRow, read_row
from xrlhf.evaluation.scored_rows import AllScores, ScoredRows
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


@dataclass(frozen=True)
class _Encoded:
    """A row, what it gives to score, and its tokens in one part or in one a response, or reasons in their places."""

    raw: RawRow
    read: ScorableRow | RowError
    parts: list[TokenizedGroup | RowError]


def score_file(
    scorer: Scorer,
    data: Path,
    out: Path,
    *,
    skip_bad: bool = False,
    map_fn: MapFn | None = None,
    rows: ScoredRows | None = None,
) -> ScoreSummary:
    """Score the rows of ``data`` into the JSON Lines file ``out``, which appears only when it is complete.

    Args:
        scorer: The reward model.
        data: Any file or folder that :func:`xrlhf.data.sources.open_source` reads.
        out: The file to write; one that exists is replaced.
        skip_bad: Write a row that cannot be scored with an ``error`` in place of a score, rather than stop.
        map_fn: What turns a row into its answers; None for the layouts of :data:`xrlhf.evaluation.rows.LAYOUTS`.
            Scores are written in the order in which the row has the answers.
        rows: What is written for a row; all its scores if None.

    Raises:
        DataError: A row cannot be scored; the message names its place and reason, and nothing is written.
    """
    source = open_source(str(data))
    if out.is_dir():
        raise DataError(f"{out} is a folder: name a file to write")
    rows = rows or AllScores()
    apart = skip_bad and rows.takes_some
    summary = ScoreSummary()
    try:
        with (
            replacing(out) as aside,
            aside.open("w", encoding="utf-8") as file,
            progress_bar("score", source.num_rows_hint(), "row") as bar,
        ):
            read = (
                [_limited(raw, read_row(raw, map_fn), rows.num_responses) for raw in chunk.rows()]
                for chunk in source.chunks(_CHUNK_ROWS)
            )
            # The next rows are read and tokenised while the device scores these.
            for chunk in prefetch((_encode(scorer, some, apart=apart) for some in read), ahead=1):
                results = iter(scorer.score_encoded([part for item in chunk for part in item.parts]))
                for item in chunk:
                    scores = _scores_of([next(results) for _ in item.parts])
                    file.write(_json_line(_row(item, scores, rows, summary, skip_bad)) + "\n")
                bar.update(len(chunk))
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}") from error
    return summary


def _limited(
    raw: RawRow, read: ScorableRow | RowError, num_responses: int | None
) -> tuple[RawRow, ScorableRow | RowError]:
    """A row with its first responses alone, if not all are asked for."""
    if num_responses is None or isinstance(read, RowError):
        return raw, read
    return raw, replace(read, group=replace(read.group, responses=read.group.responses[:num_responses]))


def _encode(scorer: Scorer, rows: list[tuple[RawRow, ScorableRow | RowError]], *, apart: bool) -> list[_Encoded]:
    """Every row and its tokens, or the reason why it has none.

    Args:
        scorer: The reward model.
        rows: The rows.
        apart: Where a group cannot be encoded as a whole, give each of its responses a part of its own.
    """
    encoded = iter(scorer.encode([read.group for _, read in rows if isinstance(read, ScorableRow)]))
    items = [_Encoded(raw, read, [read if isinstance(read, RowError) else next(encoded)]) for raw, read in rows]
    if apart:
        broken = [
            (item, [Group(item.read.group.prompt, (response,)) for response in item.read.group.responses])
            for item in items
            if isinstance(item.read, ScorableRow)
            and isinstance(item.parts[0], RowError)
            and len(item.read.group.responses) > 1
        ]
        single = iter(scorer.encode([group for _, singles in broken for group in singles]))
        for item, singles in broken:
            item.parts[:] = [next(single) for _ in singles]
    return items


def _scores_of(results: list[list[float] | RowError]) -> list[float | None] | RowError:
    """The scores of a row's responses, None for those without; the first reason where none has one."""
    reasons = [result for result in results if isinstance(result, RowError)]
    if len(reasons) == len(results):
        return reasons[0]
    return [score for result in results for score in ([None] if isinstance(result, RowError) else result)]


def _row(
    item: _Encoded, scores: list[float | None] | RowError, rows: ScoredRows, summary: ScoreSummary, skip_bad: bool
) -> dict[str, Any]:
    summary.num_rows += 1
    row = dict(item.raw.value) if not isinstance(item.raw.value, RowError) else {}
    if isinstance(item.read, ScorableRow) and not isinstance(scores, RowError):
        summary.num_scores += sum(score is not None for score in scores)
        return rows.row(row, item.read, scores)
    assert isinstance(scores, RowError)
    if not skip_bad:
        raise DataError(f"{item.raw.location}: {scores.detail} (--skip-bad writes such rows without a score)")
    summary.num_bad += 1
    # Scores of an earlier run must not pass for this one's.
    for name in ("score", "scores", "best_index"):
        row.pop(name, None)
    return {**row, "error": str(scores)}


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
