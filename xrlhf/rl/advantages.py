"""Advantages: how much better a token, or an answer, did than was to be expected.

Answers are rows of (S, L) arrays, filled up on the right; ``mask`` is True where a token is. The K answers to a prompt
stand together.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np

from xrlhf.errors import ConfigError
from xrlhf.losses.options import number_option, switch_option

__all__ = [
    "GAE",
    "AdvantageEstimator",
    "Baseline",
    "Estimate",
    "GroupRelative",
    "ReturnsToGo",
    "Scale",
    "discounted_sums",
    "generalised_advantages",
    "whiten",
]

Baseline = Literal["mean", "others"]
"""The mean of all answers to the prompt, or of the other ones."""

Scale = Literal["group", "batch"]
"""The standard deviation of the rewards of one prompt's answers, or of all advantages of the rollout."""

_FLOOR = 1e-8
_GROUP_FLOOR = 1e-4


class Estimate(NamedTuple):
    """What an estimator gives.

    Args:
        advantages: (S, L) float64, 0 where no token is.
        returns: (S, L) float64, what a critic ought to say; None where nobody asks one.
    """

    advantages: np.ndarray
    returns: np.ndarray | None = None


class AdvantageEstimator(Protocol):
    """Turns rewards into advantages.

    Attributes:
        needs_values: Whether a critic is asked.
    """

    needs_values: bool

    def estimate(self, rewards: np.ndarray, mask: np.ndarray, values: np.ndarray | None, num_answers: int) -> Estimate:
        """Advantages of all tokens of a rollout.

        Args:
            rewards: (S, L), a reward for each token; NaN in an answer that nothing is known of, whose advantages are 0
                and which no mean counts.
            mask: (S, L) bool.
            values: (S, L), what the critic expected before each token; None without a critic.
            num_answers: Answers to each prompt; they stand together.
        """
        ...


def discounted_sums(rewards: np.ndarray, discount: float) -> np.ndarray:
    """For each token r_t + discount * r_{t+1} + discount^2 * r_{t+2} + ...

    Args:
        rewards: (S, L), 0 where no token is.
        discount: From 0 to 1.
    """
    sums = np.zeros_like(rewards, dtype=np.float64)
    following = np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + discount * following
        sums[:, t] = following
    return sums


def generalised_advantages(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, *, gamma: float, lam: float
) -> np.ndarray:
    """Generalised advantage estimation: delta_t = r_t + gamma * V_{t+1} - V_t, A_t = delta_t + gamma * lam * A_{t+1}.

    Args:
        rewards: (S, L).
        values: (S, L); behind the last token of an answer the value is 0.
        mask: (S, L) bool.
        gamma: Discount of rewards.
        lam: Between one step's error (0) and the whole return (1).

    Reference:
        Schulman et al., arXiv 1506.02438, equation 16.
    """
    rewards, values = np.where(mask, rewards, 0.0), np.where(mask, values, 0.0)
    following = np.concatenate([values[:, 1:], np.zeros((len(values), 1))], axis=1)
    return discounted_sums(rewards + gamma * following - values, gamma * lam)


def whiten(values: np.ndarray, mask: np.ndarray, *, shift: bool = True) -> np.ndarray:
    """Values of mean 0 and variance 1 over what counts, 0 elsewhere.

    Args:
        values: (S, L).
        mask: (S, L) bool.
        shift: False leaves the mean where it was.
    """
    counted = values[mask]
    if not len(counted):
        return np.zeros_like(values, dtype=np.float64)
    mean = counted.mean()
    variance = counted.var(ddof=1) if len(counted) > 1 else 0.0
    whitened = (values - mean) / np.sqrt(max(float(variance), _FLOOR))
    return np.where(mask, whitened if shift else whitened + mean, 0.0)


class GAE:
    """Generalised advantage estimation, which asks a critic: PPO.

    Args:
        gamma: Discount of rewards, from 0 to 1; 1 for answers, which are rewarded at their end.
        lam: From 0 to 1; the smaller, the more the critic is trusted.
        whiten: Whether advantages get mean 0 and variance 1 over the tokens of the rollout.

    Raises:
        ConfigError: An option has a value that is not accepted.
    """

    needs_values = True

    def __init__(self, gamma: float = 1.0, lam: float = 0.95, whiten: bool = True) -> None:
        self.gamma = _share("GAE", "gamma", gamma)
        self.lam = _share("GAE", "lam", lam)
        self.whiten = switch_option("GAE", "whiten", whiten)

    def estimate(self, rewards: np.ndarray, mask: np.ndarray, values: np.ndarray | None, num_answers: int) -> Estimate:
        """See :class:`AdvantageEstimator`."""
        assert values is not None
        counted = mask & _is_known(rewards, mask)[:, None]
        plain = generalised_advantages(rewards, values, counted, gamma=self.gamma, lam=self.lam)
        # Of an answer that nothing is known of the critic learns that it was right.
        returns = np.where(mask, np.where(counted, plain, 0.0) + values, 0.0)
        advantages = whiten(plain, counted) if self.whiten else np.where(counted, plain, 0.0)
        return Estimate(advantages, returns)


class GroupRelative:
    """An answer's reward against those of the other answers to its prompt; every token of it has the same advantage.

    ================= ========== =========
    known as          baseline   scale
    ================= ========== =========
    GRPO              ``mean``   ``group``
    Dr. GRPO          ``mean``   None
    RLOO              ``others`` None
    REINFORCE++ (b)   ``mean``   ``batch``
    ================= ========== =========

    Args:
        baseline: What is subtracted: the mean over the prompt's answers, or over the other ones.
        scale: What the difference is divided by: the sample standard deviation of the prompt's rewards, plus 1e-4; of
            all advantages of the rollout; None for nothing.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        GRPO: arXiv 2402.03300, section 4.1.2. Dr. GRPO: arXiv 2503.20783. RLOO: Ahmadian et al., arXiv 2402.14740,
        equation 8. REINFORCE++ with a baseline: Hu et al., arXiv 2501.03262.
    """

    needs_values = False

    def __init__(self, baseline: Baseline = "mean", scale: Scale | None = "group") -> None:
        for name, value, accepted in (
            ("baseline", baseline, get_args(Baseline)),
            ("scale", scale, (*get_args(Scale), None)),
        ):
            if value not in accepted:
                raise ConfigError(f"GroupRelative: {name} is {value!r}; accepted are {', '.join(map(repr, accepted))}")
        self.baseline = baseline
        self.scale = scale

    def estimate(self, rewards: np.ndarray, mask: np.ndarray, values: np.ndarray | None, num_answers: int) -> Estimate:
        """See :class:`AdvantageEstimator`."""
        known = _is_known(rewards, mask)
        totals = np.where(known, np.where(mask, rewards, 0.0).sum(axis=1), 0.0)
        of_answers = self.of_groups(totals.reshape(-1, num_answers), known.reshape(-1, num_answers)).reshape(-1)
        counted = mask & known[:, None]
        advantages = np.where(counted, of_answers[:, None], 0.0)
        return Estimate(whiten(advantages, counted) if self.scale == "batch" else advantages)

    def of_groups(self, rewards: np.ndarray, known: np.ndarray) -> np.ndarray:
        """(P, K) advantages of whole answers, not yet scaled by what lies outside of their group.

        Args:
            rewards: (P, K), 0 where not known.
            known: (P, K) bool.
        """
        count = known.sum(axis=1, keepdims=True)
        total = rewards.sum(axis=1, keepdims=True)
        if self.baseline == "others":
            baseline = (total - rewards) / np.maximum(count - 1, 1)
        else:
            baseline = total / np.maximum(count, 1)
        # A single answer cannot be compared.
        differences = np.where(known & (count > 1), rewards - baseline, 0.0)
        if self.scale != "group":
            return differences
        from_mean = np.where(known, rewards - total / np.maximum(count, 1), 0.0)
        variance = (from_mean**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1)
        return differences / (np.sqrt(variance) + _GROUP_FLOOR)


class ReturnsToGo:
    """What is still to come from each token on, normalised over the rollout: REINFORCE++.

    Args:
        gamma: Discount of rewards, from 0 to 1.
        whiten: Whether advantages get mean 0 and variance 1 over the tokens of the rollout.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Hu et al., arXiv 2501.03262, section 3.
    """

    needs_values = False

    def __init__(self, gamma: float = 1.0, whiten: bool = True) -> None:
        self.gamma = _share("ReturnsToGo", "gamma", gamma)
        self.whiten = switch_option("ReturnsToGo", "whiten", whiten)

    def estimate(self, rewards: np.ndarray, mask: np.ndarray, values: np.ndarray | None, num_answers: int) -> Estimate:
        """See :class:`AdvantageEstimator`."""
        counted = mask & _is_known(rewards, mask)[:, None]
        sums = discounted_sums(np.where(counted, rewards, 0.0), self.gamma)
        return Estimate(whiten(sums, counted) if self.whiten else np.where(counted, sums, 0.0))


def _is_known(rewards: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(S,) bool, True where every token of the answer has a reward."""
    return ~(np.isnan(rewards) & mask).any(axis=1)


def _share(owner: str, name: str, value: float) -> float:
    found = number_option(owner, name, value)
    if found > 1:
        raise ConfigError(f"{owner}: {name} is {value!r}; accepted is a number from 0 to 1")
    return found
