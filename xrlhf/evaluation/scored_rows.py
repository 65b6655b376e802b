"""What is written for a row once its responses have scores: all of them, or the best response."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from xrlhf.errors import ConfigError
from xrlhf.evaluation.rows import ScorableRow

__all__ = ["AllScores", "BestOf", "ScoredRows"]


class ScoredRows(Protocol):
    """How scores become a row of the output; it may count as it goes."""

    num_responses: int | None
    """How many responses of a row are looked at, the first ones; all if None."""

    takes_some: bool
    """Whether a row is of use when only some of its responses can be scored."""

    def row(self, row: Mapping[str, Any], read: ScorableRow, scores: Sequence[float | None]) -> dict[str, Any]:
        """The row to write.

        Args:
            row: The row as the file has it.
            read: What it gave to score.
            scores: Of its responses, in the row's own order; None where one cannot be scored, never for all of them.
        """
        ...

    def summary(self) -> str:
        """What there is to say of all rows, as one line; empty for nothing."""
        ...


class AllScores:
    """Every row with its ``score``, or its ``scores`` where it holds several conversations."""

    num_responses: int | None = None
    takes_some = False

    def row(self, row: Mapping[str, Any], read: ScorableRow, scores: Sequence[float | None]) -> dict[str, Any]:
        return {**row, **({"score": scores[0]} if read.is_single else {"scores": list(scores)})}

    def summary(self) -> str:
        return ""


class BestOf:
    """Every row with the best of its responses (best-of-n sampling).

    A row gets ``response``, the best one as the row has it; ``score``, its score; ``best_index``, its place among the
    responses, from 0; and ``scores``, those of all, null where one could not be scored. Of equal scores the first wins.

    Args:
        num_responses: Choose among the first so many responses of each row, 1 or more; among all if None.

    Attributes:
        num_ties: Rows in which several responses share the highest score.

    Raises:
        ConfigError: ``num_responses`` is below 1.
    """

    takes_some = True

    def __init__(self, num_responses: int | None = None) -> None:
        if num_responses is not None and num_responses < 1:
            raise ConfigError(f"best of {num_responses}: choose among 1 or more responses")
        self.num_responses = num_responses
        self.num_ties = 0
        self._best: list[float] = []
        self._num_scores = 0
        self._num_unscored = 0
        self._sum_of_all = 0.0

    def row(self, row: Mapping[str, Any], read: ScorableRow, scores: Sequence[float | None]) -> dict[str, Any]:
        known = [score for score in scores if score is not None]
        best = max(known)
        index = scores.index(best)
        self.num_ties += known.count(best) > 1
        self._best.append(best)
        self._num_scores += len(known)
        self._num_unscored += len(scores) - len(known)
        self._sum_of_all += math.fsum(known)
        return {
            **row,
            "response": read.responses[index],
            "score": best,
            "best_index": index,
            "scores": list(scores),
        }

    def summary(self) -> str:
        if not self._best:
            return "no row has a best response"
        of_best, of_all = math.fsum(self._best) / len(self._best), self._sum_of_all / self._num_scores
        line = (
            f"best of {self._num_scores / len(self._best):.4g} responses on average: mean score {of_best:.4f}, of all "
            f"{of_all:.4f}; {self.num_ties} of {len(self._best)} rows have several best, the first was taken"
        )
        return line + (f"; {self._num_unscored} responses could not be scored" if self._num_unscored else "")
