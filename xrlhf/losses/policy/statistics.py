"""What a policy's responses say about its training, the same for every loss on preferences."""

from __future__ import annotations

import torch
from torch import Tensor

from xrlhf.losses.objective import GroupMean
from xrlhf.losses.policy.logps import chosen_nll, existing_logps
from xrlhf.losses.policy.objective import ResponseLogps
from xrlhf.losses.statistics import pair_statistics

__all__ = ["reward_statistics"]


@torch.no_grad()
def reward_statistics(rewards: Tensor, policy: ResponseLogps, mask: Tensor, ratings: Tensor) -> dict[str, GroupMean]:
    """Implicit rewards and log-probabilities of the groups that hold a preference.

    Args:
        rewards: (G, K), what the loss takes for the reward of each response.
        policy: Of the model that is trained.
        mask: (G, K) bool, True where the response exists.
        ratings: (G, K) float, NaN where the data has none.

    Returns:
        Detached values for each group, by name:

        - ``chosen_reward_mean``: reward of the best response.
        - ``rejected_reward_mean``: mean reward of the other responses.
        - ``reward_margin``: mean difference over the pairs of the group.
        - ``reward_acc``: share of the pairs that the rewards rank right; equal rewards count one half.
        - ``chosen_logp_mean``, ``rejected_logp_mean``: log-probability, summed over tokens, of the best response and
          the mean of the others. Both falling is common in training on differences; a chosen one that falls far
          asks for a term on it, or for a larger beta.
        - ``chosen_nll_mean``: minus the mean log-probability of the tokens of the best response.
    """
    of_rewards = pair_statistics(rewards, mask, ratings)
    of_logps = pair_statistics(existing_logps(policy, mask), mask, ratings)
    counted = of_rewards["num_pairs"] > 0
    return {
        "chosen_reward_mean": GroupMean(of_rewards["chosen_score"], counted),
        "rejected_reward_mean": GroupMean(of_rewards["rejected_score"], counted),
        "reward_margin": GroupMean(of_rewards["margin"], counted),
        "reward_acc": GroupMean(of_rewards["accuracy"], counted),
        "chosen_logp_mean": GroupMean(of_logps["chosen_score"], counted),
        "rejected_logp_mean": GroupMean(of_logps["rejected_score"], counted),
        "chosen_nll_mean": chosen_nll(policy, mask, ratings),
    }
