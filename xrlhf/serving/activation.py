"""What is done to a raw score before it is sent: nothing, or a sigmoid."""

from __future__ import annotations

import math
from typing import Literal

from transformers import PreTrainedConfig

__all__ = ["Activation", "activated", "activation_of_config"]

Activation = Literal["none", "sigmoid"]
"""``"none"`` sends the raw score, ``"sigmoid"`` a number from 0 to 1 in its place."""


def activation_of_config(config: PreTrainedConfig) -> Activation:
    """What servers that read a one-label model's ``problem_type`` do to its score: nothing where it is regression."""
    return "none" if getattr(config, "problem_type", None) == "regression" else "sigmoid"


def activated(score: float, activation: Activation) -> float:
    """The number that is sent for a raw score."""
    if activation == "none":
        return score
    # Written in two ways so that neither overflows.
    if score >= 0:
        return 1.0 / (1.0 + math.exp(-score))
    power = math.exp(score)
    return power / (1.0 + power)
