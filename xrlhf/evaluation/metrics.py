"""Exact metrics over whole evaluation sets: one row per group, means taken once, at the end.

A mean of batch means depends on how the set was cut into batches. Here every group contributes one row, rows are
gathered from all batches and ranks, and each mean is a correctly rounded sum divided by a count: the result does not
depend on batch size, number of ranks, or the order in which rows arrive, not even in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from xrlhf.errors import ConfigError, DataError, TrainingError
from xrlhf.losses.statistics import pair_statistics

__all__ = ["GroupMetrics", "pair_statistics", "wilson_interval"]

_NORMAL_QUANTILE_975 = 1.959963984540054


def wilson_interval(successes: float, n: int, z: float = _NORMAL_QUANTILE_975) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    Lower and upper bound are the two solutions p of ``|successes / n - p| = z * sqrt(p * (1 - p) / n)``. Unlike the
    interval p +- z * standard error it stays inside [0, 1] and has a sensible width at 0, at 1 and for small ``n``.

    ``successes`` may be fractional. For n independent values in [0, 1] with mean p the variance is at most
    p * (1 - p), reached when all values are 0 or 1. So the interval is Wilson's own for values 0 and 1, and wider than
    it need be, never narrower, when values lie in between (ties, or several pairs a group).

    Args:
        successes: Sum of the values, 0 to ``n``.
        n: Number of values, at least 1.
        z: Normal quantile of the confidence level; the default gives 95 %.

    Returns:
        Lower and upper bound, 0 to 1.

    Raises:
        ValueError: ``n`` is below 1, or ``successes`` is outside 0 to ``n``.

    Reference:
        E. B. Wilson, Probable inference, the law of succession, and statistical inference, Journal of the American
        Statistical Association 22 (1927), 209-212.
    """
    if n < 1:
        raise ValueError(f"n is {n}; an interval needs at least one value")
    if not 0 <= successes <= n:
        raise ValueError(f"successes is {successes}; accepted is 0 to n, which is {n}")
    centre = (successes + z * z / 2) / (n + z * z)
    half_width = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


class GroupMetrics:
    """Collects one row per evaluated group and computes the metrics of the whole set from all rows.

    Knows neither devices nor ranks: each rank fills its own object, the caller moves the :meth:`state` tensors to
    wherever the result is wanted and :meth:`merge` takes them in, in any order.

    Example:
        >>> metrics = GroupMetrics()
        >>> scores = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
        >>> metrics.add(scores, torch.ones(2, 2, dtype=torch.bool), torch.full((2, 2), torch.nan), datasets=0)
        >>> metrics.compute(["helpful"])["helpful/accuracy"]
        0.5
    """

    COLUMNS = ("dataset", "num_pairs", "accuracy", "margin", "chosen_score", "rejected_score", "tie_share")
    """Columns of :meth:`state`, in order."""

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self._chunks)

    def add(
        self,
        scores: Tensor,
        mask: Tensor,
        ratings: Tensor,
        datasets: Tensor | int,
        *,
        weights: Tensor | None = None,
        group_ids: Tensor | None = None,
    ) -> None:
        """Add the groups of one batch.

        Args:
            scores: (G, K) float on any device, best response first.
            mask: (G, K) bool, True where the response exists.
            ratings: (G, K) float, NaN where the data has none; two equal ratings are no pair.
            datasets: (G,) int64, index of each group's data set in the names given to :meth:`compute`, or one index
                for the whole batch.
            weights: (G,) float; groups of weight 0 are filler and leave no row. None keeps all.
            group_ids: (G,) int64, position of each group in its data set, to name it in an error.

        Raises:
            TrainingError: A response that exists has a score that is not finite.
            ValueError: Shapes or dtypes do not fit together, or an index is negative.
        """
        # Moved before it is widened: several accelerators have no float64.
        scores, mask, ratings = scores.detach().cpu(), mask.cpu(), ratings.cpu()
        values = pair_statistics(scores.double(), mask, ratings)
        num_groups = len(scores)
        if isinstance(datasets, int):
            datasets = torch.full((num_groups,), datasets, dtype=torch.int64)
        datasets = self._per_group("datasets", datasets, num_groups)
        if bool((datasets < 0).any()):
            raise ValueError(f"dataset indices must be 0 or greater, but one is {int(datasets.min())}")
        if weights is None:
            counted = torch.ones(num_groups, dtype=torch.bool)
        else:
            counted = self._per_group("weights", weights, num_groups) != 0
        if group_ids is not None:
            group_ids = self._per_group("group_ids", group_ids, num_groups)

        broken = counted & (mask & ~scores.isfinite()).any(dim=1)
        if bool(broken.any()):
            first = int(broken.nonzero()[0, 0])
            value = float(scores[first][mask[first] & ~scores[first].isfinite()][0])
            where = f"group {int(group_ids[first])}" if group_ids is not None else f"row {first} of the batch"
            raise TrainingError(
                f"the model scored a response of {where} of data set {int(datasets[first])} with {value} (not finite "
                f"in {int(broken.sum())} of {int(counted.sum())} groups of this batch), so no metric over it would "
                "mean anything: look for non-finite weights in the checkpoint, or compute in bfloat16 or float32 "
                "instead of float16"
            )
        values["dataset"] = datasets
        rows = torch.stack([values[name].double() for name in self.COLUMNS], dim=1)
        self._chunks.append(rows[counted])

    def state(self) -> Tensor:
        """All rows so far: (N, 7) float64 on the CPU, columns as in :attr:`COLUMNS`."""
        if not self._chunks:
            return torch.empty(0, len(self.COLUMNS), dtype=torch.float64)
        if len(self._chunks) > 1:
            self._chunks = [torch.cat(self._chunks)]
        return self._chunks[0].clone()

    def merge(self, state: Tensor) -> None:
        """Take in the rows of another object, for instance another rank's.

        Args:
            state: What that object's :meth:`state` returned.

        Raises:
            ValueError: ``state`` is not such a tensor.
        """
        if state.dim() != 2 or state.shape[1] != len(self.COLUMNS) or state.dtype != torch.float64:
            raise ValueError(
                f"a state is (N, {len(self.COLUMNS)}) torch.float64, not {tuple(state.shape)} {state.dtype}"
            )
        self._chunks.append(state.detach().cpu().clone())

    def compute(self, names: Sequence[str]) -> dict[str, float]:
        """The metrics of all groups, and of each data set under ``NAME/``.

        The unit is the group (one prompt): every group with a pair counts the same, whatever its number of pairs, and
        the interval takes groups as independent. Means over all groups therefore weigh data sets by their size.

        Args:
            names: Name of each data set, by index; all different.

        Returns:
            For all groups together, and again with ``NAME/`` before each key:

            - ``accuracy``: mean of the groups' accuracies; equal scores count one half.
            - ``accuracy_low``, ``accuracy_high``: 95 % interval of it, see :func:`wilson_interval`.
            - ``margin``, ``chosen_score_mean``, ``rejected_score_mean``, ``tie_share``: means of the values of
              :func:`~xrlhf.losses.statistics.pair_statistics`.
            - ``num_groups``: groups the means are taken over.
            - ``num_groups_without_pair``: groups left out of everything else, because they have fewer than two
              responses or all their ratings are equal.

            A data set without a single pair has its two counts only.

        Raises:
            ConfigError: Two data sets have the same name.
            DataError: No group of any data set has a pair.
            ValueError: A row has a dataset index that ``names`` does not cover.
        """
        repeated = sorted({name for name in names if list(names).count(name) > 1})
        if repeated:
            raise ConfigError(
                f"two evaluation sets are called {repeated[0]!r}, so one would hide the other's metrics: give each "
                "its own name"
            )
        rows = self.state()
        index = rows[:, self.COLUMNS.index("dataset")]
        if len(rows) and int(index.max()) >= len(names):
            raise ValueError(f"a group belongs to data set {int(index.max())}, but only {len(names)} names are given")
        if not bool((rows[:, self.COLUMNS.index("num_pairs")] > 0).any()):
            raise DataError(
                f"none of the {len(rows)} evaluated groups has two responses of which one is preferred: check that "
                "the evaluation data is not empty and its ratings are not all equal"
            )
        metrics = self._means(rows)
        for dataset, name in enumerate(names):
            metrics.update({f"{name}/{key}": value for key, value in self._means(rows[index == dataset]).items()})
        return metrics

    @classmethod
    def _means(cls, rows: Tensor) -> dict[str, float]:
        column = dict(zip(cls.COLUMNS, rows.unbind(dim=1), strict=True))
        ranked = column["num_pairs"] > 0
        num_groups = int(ranked.sum())
        counts = {
            "num_groups": float(num_groups),
            "num_groups_without_pair": float(len(rows) - num_groups),
        }
        if num_groups == 0:
            return counts
        # fsum rounds once, after an exact addition, so the order of the rows cannot show in the result.
        total = {name: math.fsum(values[ranked].tolist()) for name, values in column.items()}
        low, high = wilson_interval(total["accuracy"], num_groups)
        return {
            "accuracy": total["accuracy"] / num_groups,
            "accuracy_low": low,
            "accuracy_high": high,
            "margin": total["margin"] / num_groups,
            "chosen_score_mean": total["chosen_score"] / num_groups,
            "rejected_score_mean": total["rejected_score"] / num_groups,
            "tie_share": total["tie_share"] / num_groups,
            **counts,
        }

    @staticmethod
    def _per_group(name: str, values: Tensor, num_groups: int) -> Tensor:
        if values.shape != (num_groups,):
            raise ValueError(f"{name} must be ({num_groups},), one value a group, not {tuple(values.shape)}")
        return values.detach().cpu()
