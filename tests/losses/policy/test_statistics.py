from __future__ import annotations

import math

import pytest
import torch

from xrlhf.losses.policy import ResponseLogps
from xrlhf.losses.policy.statistics import reward_statistics

NAN = math.nan


def test_by_hand() -> None:
    """Rewards 1, 2, 0, 2: d = -1, 1, -1, 2, 0, -2: right 2, equal 1 of 6; margin -1/6; others (2 + 0 + 2) / 3.

    The second group is a tie and counts nowhere.
    """
    rewards = torch.tensor([[1.0, 2.0, 0.0, 2.0], [5.0, 1.0, 0.0, 0.0]])
    policy = ResponseLogps(
        torch.tensor([[-6.0, -2.0, -4.0, -9.0], [-1.0, -1.0, NAN, NAN]]), torch.tensor([[4, 1, 1, 1], [1, 1, 0, 0]])
    )
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    ratings = torch.tensor([[NAN] * 4, [1.0, 1.0, NAN, NAN]])
    found = reward_statistics(rewards, policy, mask, ratings)
    assert all(mean.counted.tolist() == [True, False] for mean in found.values())
    assert {name: mean.values[0].item() for name, mean in found.items()} == {
        "chosen_reward_mean": 1,
        "rejected_reward_mean": pytest.approx(4 / 3),
        "reward_margin": pytest.approx(-1 / 6),
        "reward_acc": pytest.approx(2.5 / 6),
        "chosen_logp_mean": -6,
        "rejected_logp_mean": -5,
        "chosen_nll_mean": 1.5,
    }
