"""Sources of rewards: a reward model here or on a server, a function, rules, and the weighted sum of several."""

from __future__ import annotations

from xrlhf.rl.rewards.exact_match import ExactMatchReward
from xrlhf.rl.rewards.function import FunctionReward
from xrlhf.rl.rewards.gsm8k import GSM8KReward
from xrlhf.rl.rewards.model import RewardModelReward
from xrlhf.rl.rewards.practice import PracticeReward
from xrlhf.rl.rewards.remote import RemoteReward
from xrlhf.rl.rewards.weighted import RewardTable, WeightedRewards

__all__ = [
    "ExactMatchReward",
    "FunctionReward",
    "GSM8KReward",
    "PracticeReward",
    "RemoteReward",
    "RewardModelReward",
    "RewardTable",
    "WeightedRewards",
]
