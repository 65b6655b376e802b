"""What every benchmark is made of: rows with ranked answers, and how their scores become results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

import numpy as np

from xrlhf.data.map_fns.messages import check_answer, check_prompt
from xrlhf.data.reasons import Reason, RowError, kind_of, short
from xrlhf.evaluation.estimates import Estimate, SampleMean, Stratum
from xrlhf.structures import Conversation, Group

__all__ = [
    "Benchmark",
    "BenchmarkRow",
    "ScoredRow",
    "answers_of",
    "choice_of",
    "file_of",
    "group_of_texts",
    "mean_over",
    "strict_accuracy",
]


@dataclass(frozen=True)
class BenchmarkRow:
    """One row of a benchmark, before it is scored.

    Args:
        subset: The part of the benchmark it counts in.
        group: Prompt and answers.
        ranks: A rank for each answer, 0 the best; an answer is better than every answer of a higher rank.
        row_id: The row's own id as text, empty where it has none.
        location: File and line.
        details: What the benchmark's rule needs besides scores: texts and numbers, by name.
    """

    subset: str
    group: Group
    ranks: tuple[int, ...]
    row_id: str
    location: str
    details: Mapping[str, str | int] = field(default_factory=dict)

    def scored(self, scores: Sequence[float], lengths: Sequence[int]) -> ScoredRow:
        """The row with what a model says about it, without its texts."""
        return ScoredRow(
            subset=self.subset,
            ranks=self.ranks,
            row_id=self.row_id,
            location=self.location,
            details=dict(self.details),
            prompt=_digest(self.group.prompt),
            content=_digest([self.group.prompt, *self.group.responses]),
            scores=tuple(scores),
            lengths=tuple(lengths),
        )


@dataclass(frozen=True)
class ScoredRow:
    """One row with its scores: all that results are computed from.

    Args:
        subset: As in :class:`BenchmarkRow`.
        ranks: As there.
        row_id: As there.
        location: As there.
        details: As there.
        prompt: Digest of the prompt; rows with the same one are not independent.
        content: Digest of prompt and answers, by which rows of two reports are matched.
        scores: A raw score for each answer.
        lengths: Tokens of each answer's own text.
    """

    subset: str
    ranks: tuple[int, ...]
    row_id: str
    location: str
    details: Mapping[str, str | int]
    prompt: str
    content: str
    scores: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def key(self) -> str:
        """What the row is known by inside its benchmark."""
        return f"{self.location}\0{self.content}"

    def pairs(self) -> list[tuple[int, int]]:
        """Places of all pairs of a better and a worse answer."""
        places = range(len(self.ranks))
        return [(i, j) for i in places for j in places if self.ranks[i] < self.ranks[j]]


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is read and scored.

    Args:
        name: For ``--benchmark``.
        title: As people write it.
        rule: Half a sentence on what its number is.
        source: Where data and rule come from.
        recognises: Whether a row (and the place it came from) is one of this benchmark's.
        read: From a row and its place to answers; raises RowError.
        results: From scored rows to numbers, the one that papers print first.
        expected: Rows that each subset has in full; 0 where that is not known. Empty where any subset may come.
    """

    name: str
    title: str
    rule: str
    source: str
    recognises: Callable[[Mapping[str, Any], str], bool]
    read: Callable[[Mapping[str, Any], str], BenchmarkRow]
    results: Callable[[Sequence[ScoredRow]], list[Estimate]]
    expected: Mapping[str, int] = field(default_factory=dict)


def group_of_texts(prompt: Any, prompt_name: str, answers: Sequence[tuple[str, Any]]) -> Group:
    """A group of a prompt and answers, each text or messages; blank and equal answers stay.

    Args:
        prompt: What the column holds.
        prompt_name: Name of the column.
        answers: Name and content of each answer's column, in order.
    """
    return Group(check_prompt(prompt, prompt_name), tuple(check_answer(value, name) for name, value in answers))


def answers_of(row: Mapping[str, Any], name: str, count: int | None = None) -> list[tuple[str, Any]]:
    """The answers in a list column, each with its name.

    Args:
        row: The row.
        name: The column.
        count: How many there must be; None for one or more.
    """
    value = row.get(name)
    if not isinstance(value, (list, tuple)):
        raise RowError(Reason.WRONG_TYPE, f"{name} is {kind_of(value)}; expected a list of answers")
    if not value or (count is not None and len(value) != count):
        raise RowError(Reason.WRONG_TYPE, f"{name} holds {len(value)} answers; expected {count or '1 or more'}")
    return [(f"{name}[{place}]", answer) for place, answer in enumerate(value)]


def choice_of(value: Any, name: str, accepted: Sequence[Any]) -> int:
    """The place of a label in the list of accepted ones.

    Raises:
        RowError: It is none of them; ``True`` is not 1.
    """
    for place, known in enumerate(accepted):
        if value == known and type(value) is type(known):
            return place
    raise RowError(Reason.BAD_LABEL, f"{name} is {short(value)}; expected {' or '.join(map(short, accepted))}")


def file_of(location: str) -> PurePath:
    """The path in a row's location, without line or index."""
    head, bracket, _ = location.rpartition("[")
    return PurePath(head if bracket and location.endswith("]") else location.rpartition(":")[0] or location)


def mean_over(
    name: str,
    rows: Sequence[ScoredRow],
    values: Sequence[float],
    *,
    stratum: Stratum | None = None,
    prompts: Sequence[str] | None = None,
    note: str = "",
) -> SampleMean:
    """A mean of one value a row.

    Args:
        name: What reports call it.
        rows: The rows.
        values: One for each.
        stratum: What is drawn together; by default the rows themselves, under ``name``.
        prompts: What counts as one draw; by default rows of the same prompt.
        note: Half a sentence on the rule.
    """
    known = tuple(row.prompt for row in rows) if prompts is None else tuple(prompts)
    return SampleMean(
        name,
        np.asarray(values, dtype=np.float64),
        known,
        Stratum.of(name, known) if stratum is None else stratum,
        tuple(row.key for row in rows),
        note,
    )


def strict_accuracy(name: str, rows: Sequence[ScoredRow]) -> SampleMean:
    """Share of rows of two answers whose first scores higher than the second; a tie is wrong."""
    return mean_over(name, rows, [float(row.scores[0] > row.scores[1]) for row in rows])


def _digest(conversations: Conversation | list[Any]) -> str:
    text = json.dumps(conversations, sort_keys=True, ensure_ascii=True, default=str)
    return blake2b(text.encode(), digest_size=12).hexdigest()
