"""How strongly a reward holds the policy near its reference: at a fixed weight, or one that follows a target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrlhf.errors import ConfigError
from xrlhf.losses.options import number_option

__all__ = ["KLControl"]

_MOST_ERROR = 0.2


class KLControl:
    """The weight of the divergence in the reward.

    With a target, after every rollout of n answers whose mean divergence (summed over each answer) was KL::

        coef *= 1 + clip(KL / target - 1, -0.2, 0.2) * n / horizon

    Args:
        coef: Weight at the beginning, 0 or greater.
        target: Divergence of an answer to be held, in nats, greater than 0; None keeps the weight as it is.
        horizon: Answers after which an error of the target has had its full effect, greater than 0.

    Attributes:
        coef: Weight for the next rollout.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        Ziegler et al., arXiv 1909.08593, section 2.2; openai/lm-human-preferences, train_policy.py.
    """

    def __init__(self, coef: float, target: float | None = None, horizon: float = 10_000) -> None:
        self.coef = number_option("RLTrainLoop", "kl_coef", coef)
        self.target = None if target is None else number_option("RLTrainLoop", "kl_target", target, exclusive=True)
        self.horizon = number_option("RLTrainLoop", "kl_horizon", horizon, exclusive=True)
        if self.target is not None and not self.coef:
            raise ConfigError("RLTrainLoop: kl_target needs a kl_coef above 0 to begin with: 0 times anything stays 0")

    def update(self, kl: float, num_answers: int) -> None:
        """Follow the target.

        Args:
            kl: Mean over the answers of the last rollout of their summed divergence.
            num_answers: How many there were.
        """
        if self.target is not None:
            error = min(max(kl / self.target - 1, -_MOST_ERROR), _MOST_ERROR)
            self.coef *= 1 + error * num_answers / self.horizon

    def state(self) -> dict[str, float]:
        """What a checkpoint holds of it."""
        return {"coef": self.coef}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave; a weight that stays fixed is the recipe's."""
        if self.target is not None:
            self.coef = float(state["coef"])
