"""The stated rule of the built-in practice data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xrlhf.data.practice.rule import score_answer
from xrlhf.registry import REWARDS
from xrlhf.rl.rewards.answers import check_weight, reward_table
from xrlhf.rl.samples import PromptRow, Sample

__all__ = ["PracticeReward"]


@REWARDS.register_module()
class PracticeReward:
    """The points of :mod:`xrlhf.data.practice.rule`, from -9 to 6: a reward without a reward model.

    Args:
        weight: What it counts in the sum of all rewards; any finite number.
        name: What the log calls it.

    Raises:
        ConfigError: ``weight`` is not a finite number.
    """

    def __init__(self, *, weight: float = 1.0, name: str = "practice") -> None:
        self.name = name
        self.weight = check_weight(name, weight)

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        """(rows, K) float32."""
        values = []
        for row, drawn in zip(rows, samples, strict=True):
            messages = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else row.prompt
            values.append([score_answer(messages, sample.text) for sample in drawn])
        return reward_table(samples, values)
