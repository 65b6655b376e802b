from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from xrlhf.losses.policy.logistic import logistic


def test_by_hand() -> None:
    """sigmoid(log 3) = 3/4, sigmoid(-log 3) = 1/4."""
    differences = torch.tensor([math.log(3), -math.log(3), 0.0])
    assert_close(logistic(differences), torch.tensor([math.log(4 / 3), math.log(4), math.log(2)]))
    smoothed = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert logistic(differences, 0.1)[0].item() == pytest.approx(smoothed)


def test_large_differences() -> None:
    assert logistic(torch.tensor([-1e4, 1e4])).tolist() == [1e4, 0]
    assert logistic(torch.tensor([-1e4, 1e4]), 0.25).tolist() == [7.5e3, 2.5e3]
