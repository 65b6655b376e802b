"""Answers to a file of prompts, row after row, in a file that a later call can go on with."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from xrlhf.data.reasons import RowError
from xrlhf.data.sources import RawRow, Source
from xrlhf.data.table import MapFn
from xrlhf.errors import ConfigError, DataError
from xrlhf.files import replacing
from xrlhf.progress import progress_bar
from xrlhf.rl.answer_rows import AnswerRows
from xrlhf.rl.prompts import AskedRow, PromptEncoder, read_asked_row
from xrlhf.rl.samples import PromptRow, Rollouts

__all__ = ["GenerateSummary", "generate_file"]

_LAST_LINES = 1 << 16


@dataclass
class GenerateSummary:
    """Counts of one call.

    Args:
        num_before: Rows that earlier calls had written.
        num_written: Rows that this one wrote.
        left_out: Prompts without a row, by reason.
        first_left_out: The place and reason of the first of them; None where there is none.
    """

    num_before: int = 0
    num_written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    first_left_out: str | None = None

    def leave_out(self, location: str, kind: str, detail: str) -> None:
        """Count a prompt without a row."""
        self.left_out[kind] += 1
        self.first_left_out = self.first_left_out or f"{location}: {detail}"


def generate_file(
    rollouts: Rollouts,
    encoder: PromptEncoder,
    source: Source,
    out: Path,
    answer_rows: AnswerRows,
    *,
    k: int = 1,
    seed: int = 0,
    settings: Mapping[str, Any],
    map_fn: MapFn | None = None,
    plain: bool = False,
    skip_bad: bool = False,
    max_prompts: int | None = None,
    batch_prompts: int = 64,
) -> GenerateSummary:
    """Draw answers to the prompts of ``source`` and add them to the JSON Lines file ``out``.

    Rows are added whole, a batch at a time, in the order of the prompts. A later call with the same settings goes on
    behind the last of them; a line that a crash has cut short is taken away first. The settings are kept in a hidden
    file beside ``out``.

    Args:
        rollouts: What draws the answers.
        encoder: Makes the prompts' token ids.
        source: The prompts.
        out: The file to write or to go on with.
        answer_rows: What is written for a prompt.
        k: Answers to each prompt.
        seed: Seeds the draws, with each prompt's place in the source.
        settings: What has to be the same for a later call to go on, anything that JSON can hold.
        map_fn: What turns a row into its prompt; None for the layouts of :data:`xrlhf.rl.prompts.PROMPT_LAYOUTS`.
        plain: Whether texts are to be gone on with as they stand, without roles.
        skip_bad: Leave out prompts that cannot be read or are too long, and count them, rather than stop.
        max_prompts: Stop after so many prompts; None for all.
        batch_prompts: Prompts whose answers are drawn and written together, 1 or more.

    Raises:
        DataError: A prompt cannot be read, or ``out`` is no file of this command with these settings.
        ConfigError: A number below 1.
    """
    for name, value in (("batch_prompts", batch_prompts), ("max_prompts", max_prompts)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be 1 or more, got {value}")
    summary = GenerateSummary()
    start = _prepare(out, {**settings, "k": k, "seed": seed}, summary)
    total = source.num_rows_hint()
    if max_prompts is not None:
        total = max_prompts if total is None else min(total, max_prompts)
    rows = source.rows(start, max_prompts)
    try:
        with out.open("ab") as file, progress_bar("generate", total, "prompt") as bar:
            bar.update(start)
            while some := list(islice(rows, batch_prompts)):
                asked = list(_asked(some, encoder, map_fn, summary, plain=plain, skip_bad=skip_bad))
                lines = []
                if asked:
                    prompts = [prompt for _, _, prompt in asked]
                    samples = rollouts.sample(prompts, k, key=seed)
                    made = answer_rows.rows([row for _, row, _ in asked], prompts, samples)
                    for (raw, _, _), row in zip(asked, made, strict=True):
                        if isinstance(row, str):
                            summary.leave_out(raw.location, row, row)
                        else:
                            lines.append(_line(row))
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
                summary.num_written += len(lines)
                bar.update(len(some))
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}") from error
    return summary


def _asked(
    rows: list[RawRow],
    encoder: PromptEncoder,
    map_fn: MapFn | None,
    summary: GenerateSummary,
    *,
    plain: bool,
    skip_bad: bool,
) -> Iterator[tuple[RawRow, AskedRow, PromptRow]]:
    """The prompts of some rows; those that are none are counted, or end it all."""
    read = [(raw, read_asked_row(raw, map_fn, plain=plain)) for raw in rows]
    encoded = iter(encoder.encode([(raw.row, row) for raw, row in read if isinstance(row, AskedRow)]))
    for raw, row in read:
        prompt = row if isinstance(row, RowError) else next(encoded)
        if isinstance(row, AskedRow) and isinstance(prompt, PromptRow):
            yield raw, row, prompt
            continue
        assert isinstance(prompt, RowError)
        if not skip_bad:
            raise DataError(f"{raw.location}: {prompt.detail} (--skip-bad leaves such prompts out)")
        summary.leave_out(raw.location, str(prompt.reason), prompt.detail)


def _line(row: Mapping[str, Any]) -> bytes:
    """A row as a line; what JSON has no type for, such as a date of a Parquet file, becomes text."""
    try:
        return (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, in a column that is passed on, has no UTF-8.
        return (json.dumps(row, default=str) + "\n").encode()


def _prepare(out: Path, settings: Mapping[str, Any], summary: GenerateSummary) -> int:
    """Make ``out`` ready to be added to; the number of the first row of the source that has no answer yet."""
    beside = out.with_name(f".{out.name}.settings.json")
    told = json.loads(json.dumps(settings, default=str))
    if out.is_dir():
        raise DataError(f"{out} is a folder: name a file to write")
    try:
        if not out.exists() or not out.stat().st_size:
            out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(beside) as aside:
                aside.write_text(json.dumps(told, indent=1), encoding="utf-8")
            out.touch()
            return 0
        before = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None
    except (OSError, ValueError) as error:
        raise DataError(f"{out} cannot be written: {error}") from error
    if not isinstance(before, dict):
        raise DataError(f"{out} is there already, and nothing beside it says how it was made: name another file")
    changed = [name for name in {**before, **told} if before.get(name) != told.get(name)]
    if changed:
        name = changed[0]
        raise DataError(
            f"{out} was begun with {name}={before.get(name)!r}, and now it is {told.get(name)!r}: name another file, "
            "or remove that one to begin anew"
        )
    return _go_on(out, summary)


def _go_on(out: Path, summary: GenerateSummary) -> int:
    """Take a line away that was cut short; the number behind that of the last whole row."""
    try:
        with out.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            kept = _end_of_last_line(file, end)
            if kept < end:
                file.truncate(kept)
            file.seek(0)
            rows = deque(enumerate(file, 1), maxlen=1)
        if not rows:
            return 0
        summary.num_before, last = rows[0]
        return int(json.loads(last)["index"]) + 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{out} cannot be gone on with: its last row has no index ({error!r}): name another file"
        ) from error


def _end_of_last_line(file: Any, end: int) -> int:
    """Where the last whole line of a file ends; 0 where there is none."""
    while end > 0:
        begin = max(0, end - _LAST_LINES)
        file.seek(begin)
        place = file.read(end - begin).rfind(b"\n")
        if place >= 0:
            return begin + place + 1
        end = begin
    return 0
