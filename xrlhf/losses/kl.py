"""Estimates of how far a policy is from its reference, from the tokens that were drawn."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from xrlhf.errors import ConfigError

__all__ = ["KL_ESTIMATORS", "KLEstimator", "check_kl_estimator", "kl_estimate"]

KLEstimator = Literal["k1", "k2", "k3"]
"""``k1`` is right on average and of either sign, ``k2`` is never negative and a little off, ``k3`` is both right and
never negative."""

KL_ESTIMATORS: tuple[KLEstimator, ...] = get_args(KLEstimator)

_MOST = 20.0
"""Log-ratios beyond are cut: their exponential would leave float32, and a single token would outweigh a batch."""


def kl_estimate(logps: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """An estimate of KL(policy || reference) at each token that the policy drew.

    With x = log p - log p_ref of the token::

        k1 = x        k2 = x^2 / 2        k3 = exp(-x) - 1 + x

    Args:
        logps: (N,), of the policy.
        reference: (N,), of the reference.
        estimator: One of :data:`KL_ESTIMATORS`.

    Returns:
        (N,), in nats.

    Reference:
        J. Schulman, "Approximating KL divergence", 2020, joschu.net/blog/kl-approx.html.
    """
    log_ratio = logps - reference
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    log_ratio = log_ratio.clamp(-_MOST, _MOST)
    return torch.expm1(-log_ratio) + log_ratio


def check_kl_estimator(owner: str, name: str, value: str) -> KLEstimator:
    """``value``, if it is one of the estimators.

    Args:
        owner: Class the option belongs to, for the message.
        name: The option's name, for the message.
        value: What the recipe gave.

    Raises:
        ConfigError: It is anything else.
    """
    for estimator in KL_ESTIMATORS:
        if value == estimator:
            return estimator
    raise ConfigError(f"{owner}: {name} is {value!r}; accepted are {', '.join(map(repr, KL_ESTIMATORS))}")
