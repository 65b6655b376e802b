from __future__ import annotations

import math

import pytest
import torch

from xrlhf.losses.scores import existing_scores

MASK = torch.tensor([[True, False]])
RATINGS = torch.full((1, 2), math.nan)


@pytest.mark.parametrize("absent", [math.nan, math.inf, -math.inf])
def test_absent_scores_become_zero_and_get_no_gradient(absent: float) -> None:
    scores = torch.tensor([[1.5, absent]], requires_grad=True)
    present = existing_scores(scores, MASK, RATINGS)
    assert present.tolist() == [[1.5, 0.0]]
    # Even an infinite gradient from above must not reach the absent entry.
    present.backward(torch.tensor([[1.0, math.inf]]))
    assert scores.grad is not None
    assert scores.grad.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision_is_at_least_float32(given: torch.dtype, used: torch.dtype) -> None:
    assert existing_scores(torch.zeros(1, 2, dtype=given), MASK, RATINGS).dtype == used


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"shapes are \(1, 2\), \(1, 2\) and \(2, 1\)"):
        existing_scores(torch.zeros(1, 2), MASK, torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"\(groups, responses\)"):
        existing_scores(torch.zeros(2), torch.ones(2, dtype=torch.bool), torch.zeros(2))


def test_wrong_dtypes_are_named() -> None:
    with pytest.raises(ValueError, match=r"mask must be a bool tensor.*torch\.int64"):
        existing_scores(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.int64), RATINGS)
    with pytest.raises(ValueError, match=r"must be floating point, not torch\.int64 and torch\.float32"):
        existing_scores(torch.zeros(1, 2, dtype=torch.int64), MASK, RATINGS)
