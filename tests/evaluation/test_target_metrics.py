from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from xrlhf.errors import DataError
from xrlhf.evaluation.batches import SetMetrics
from xrlhf.evaluation.target_metrics import TargetMetrics, correlation
from xrlhf.losses.objective import GroupMean, Targets

HERE = torch.zeros(2, dtype=torch.int64)
ALL = torch.ones(2, 1, dtype=torch.bool)


def test_means_are_over_the_groups_that_have_a_value() -> None:
    metrics = TargetMetrics()
    metrics.add_means({"mse": GroupMean(torch.tensor([1.0, math.nan]), torch.tensor([True, False]))}, HERE)
    metrics.add_means({"mse": GroupMean(torch.tensor([2.0, 6.0]), torch.tensor([True, True]))}, torch.tensor([1, 1]))
    assert metrics.compute(["a", "b"]) == {"mse": 3.0, "a/mse": 1.0, "b/mse": 4.0}


def test_correlation_by_hand() -> None:
    """1, 2, 3 against 1, 3, 2: deviations -1 0 1 and -1 1 0, so 1 / sqrt(2 * 2)."""
    assert correlation([1, 2, 3], [1, 3, 2]) == 0.5
    assert correlation([1, 2], [-1, -2]) == pytest.approx(-1)
    assert correlation([1, 1], [1, 2]) is None
    assert correlation([1], [1]) is None


def test_correlation_agrees_with_numpy_in_any_order() -> None:
    generator = random.Random(0)
    points = [(generator.gauss(0, 1), generator.gauss(0, 1)) for _ in range(50)]
    value = correlation(*zip(*points, strict=True))
    assert value == pytest.approx(np.corrcoef(np.array(points).T)[0, 1])
    generator.shuffle(points)
    assert correlation(*zip(*points, strict=True)) == value


def test_points_of_scores_and_of_attributes() -> None:
    """What is not counted is left out: the second group's only response in the first case."""
    metrics = TargetMetrics()
    metrics.add_points(Targets(torch.tensor([[1.0], [9.0]]), torch.tensor([[1.0], [0.0]]), ALL & ~ALL[1]), HERE)
    assert metrics.state()["correlation"].shape == (0, 3)
    metrics = TargetMetrics()
    outputs = torch.tensor([[[1.0, 1.0]], [[2.0, 2.0]]])
    goals = torch.tensor([[[5.0, 7.0]], [[6.0, 1.0]]])
    metrics.add_points(Targets(outputs, goals, torch.ones(2, 1, 2, dtype=torch.bool)), HERE, ("help", "truth"))
    found = metrics.compute(["set"])
    assert found["correlation_help"] == pytest.approx(1)
    assert found["set/correlation_truth"] == pytest.approx(-1)


def test_ranks_are_merged_whichever_saw_nothing() -> None:
    one, nothing, merged = TargetMetrics(), TargetMetrics(), TargetMetrics()
    one.add_means({"mse": GroupMean(torch.tensor([1.0, 3.0]), torch.tensor([True, True]))}, HERE)
    for part in (nothing, one):
        merged.merge(part.state())
    assert merged.compute(["set"]) == one.compute(["set"])
    assert not nothing
    assert one
    assert nothing.compute(["set"]) == {}


def test_a_set_without_pairs_has_the_metrics_of_its_targets() -> None:
    metrics = SetMetrics()
    scores, ratings = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]])
    metrics.ranking.add(scores, ALL, ratings, HERE)
    with pytest.raises(DataError, match="none of the 2 evaluated groups has two responses"):
        metrics.compute(["set"])
    metrics.targets.add_means({"mse": GroupMean(torch.tensor([0.0, 4.0]), torch.tensor([True, True]))}, HERE)
    metrics.targets.add_points(Targets(scores, ratings, ALL), HERE)
    merged = SetMetrics()
    merged.merge(metrics.state())
    found = merged.compute(["set"])
    assert found["mse"] == 2.0
    assert found["correlation"] == pytest.approx(1)
    assert found["num_groups_with_target"] == 2
    assert "accuracy" not in found
    assert all(math.isfinite(value) for value in found.values())


def test_a_set_with_pairs_has_both() -> None:
    metrics = SetMetrics()
    two = torch.ones(1, 2, dtype=torch.bool)
    metrics.ranking.add(torch.tensor([[1.0, 0.0]]), two, torch.tensor([[2.0, 1.0]]), 0)
    metrics.targets.add_means({"mse": GroupMean(torch.tensor([1.0]), torch.tensor([True]))}, HERE[:1])
    found = metrics.compute(["set"])
    assert (found["accuracy"], found["mse"], found["num_groups"]) == (1.0, 1.0, 1.0)
