"""Metrics of scores against targets (ratings, labels, attributes) over whole evaluation sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xrlhf.losses.objective import GroupMean, Targets

__all__ = ["TargetMetrics", "correlation"]

_CORRELATION = "correlation"


class TargetMetrics:
    """Collects what a loss says of every group, and every prediction beside its target; means are taken at the end.

    As with :class:`~xrlhf.evaluation.metrics.GroupMetrics`, the result does not depend on batches, ranks or order.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[Tensor]] = {}

    def __bool__(self) -> bool:
        return any(len(chunk) for chunks in self._rows.values() for chunk in chunks)

    def add_means(self, means: Mapping[str, GroupMean], datasets: Tensor) -> None:
        """Add the metrics of the groups of one batch, by name.

        Args:
            means: A value for each group, (G,).
            datasets: (G,) int64, index of each group's data set.
        """
        for name, (values, counted) in means.items():
            columns = [datasets.double(), values.detach().cpu().double()]
            self._rows.setdefault(name, []).append(torch.stack(columns, dim=1)[counted.cpu()])

    def add_points(self, compared: Targets, datasets: Tensor, names: Sequence[str] = ()) -> None:
        """Add predictions and targets of one batch, to correlate them.

        Args:
            compared: (G, K), or (G, K, A).
            datasets: (G,) int64, index of each group's data set.
            names: Of the A attributes.
        """
        predictions, goals, counted = (values.detach().cpu() for values in compared)
        owner = datasets.double().unsqueeze(1).expand(predictions.shape[:2])
        columns = [("", slice(None))] if predictions.dim() == 2 else [(f"_{n}", i) for i, n in enumerate(names)]
        for suffix, column in columns:
            of_column = (..., column) if suffix else ...
            points = torch.stack([owner, predictions[of_column].double(), goals[of_column].double()], dim=-1)
            self._rows.setdefault(f"{_CORRELATION}{suffix}", []).append(points[counted[of_column]])

    def state(self) -> dict[str, Tensor]:
        """All rows so far, by metric."""
        return {name: torch.cat(chunks) for name, chunks in self._rows.items()}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Take in the rows of another object, for instance another rank's."""
        for name, rows in state.items():
            self._rows.setdefault(name, []).append(rows)

    def compute(self, names: Sequence[str]) -> dict[str, float]:
        """The metrics of all groups, and of each data set under ``NAME/``; a metric without a value is left out.

        Args:
            names: Name of each data set, by index.

        Returns:
            The mean of each of the loss's metrics over the groups that have it; ``correlation``, Pearson's between
            predictions and targets over all responses, with ``_ATTRIBUTE`` behind it where there are several; and,
            where there are targets, ``num_groups_with_target``.
        """
        state = self.state()
        results = self._of(state)
        for dataset, name in enumerate(names):
            own = {metric: rows[rows[:, 0] == dataset] for metric, rows in state.items()}
            results.update({f"{name}/{metric}": value for metric, value in self._of(own).items()})
        return results

    @staticmethod
    def _of(state: Mapping[str, Tensor]) -> dict[str, float]:
        results: dict[str, float] = {}
        num_groups = 0
        for name, rows in state.items():
            if name.startswith(_CORRELATION):
                value = correlation(rows[:, 1].tolist(), rows[:, 2].tolist())
            else:
                value = math.fsum(rows[:, 1].tolist()) / len(rows) if len(rows) else None
                num_groups = max(num_groups, len(rows))
            if value is not None:
                results[name] = value
        if results and any(name.startswith(_CORRELATION) for name in state):
            results["num_groups_with_target"] = float(num_groups)
        return results


def correlation(ones: Sequence[float], others: Sequence[float]) -> float | None:
    """Pearson's correlation, the same to the last bit whatever the order; None where one side does not vary.

    Args:
        ones: N numbers.
        others: N numbers.
    """
    if len(ones) < 2:
        return None
    mean_one, mean_other = math.fsum(ones) / len(ones), math.fsum(others) / len(others)
    a = [value - mean_one for value in ones]
    b = [value - mean_other for value in others]
    size = math.fsum(x * x for x in a) * math.fsum(y * y for y in b)
    if size == 0:
        return None
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(size)
