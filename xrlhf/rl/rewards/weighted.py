"""Several rewards at once: their weighted sum, and each by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xrlhf.errors import ConfigError, RewardError
from xrlhf.registry import REWARDS
from xrlhf.rl.rewards.answers import check_weight, place_of
from xrlhf.rl.samples import PromptRow, RewardSource, Sample

__all__ = ["RewardTable", "WeightedRewards"]


@dataclass(frozen=True)
class RewardTable:
    """Rewards of a set of answers.

    Args:
        total: (rows, K) float32, the weighted sum, finite.
        by_name: (rows, K) float32 of each source, as it gave them, before its weight; NaN where it said nothing.
    """

    total: np.ndarray
    by_name: Mapping[str, np.ndarray]


@REWARDS.register_module()
class WeightedRewards:
    """The weighted sum of what several sources say.

    A source that says nothing of an answer (NaN) is left out of its sum. An answer of which none says anything is an
    error: nothing goes without a reward in silence.

    Args:
        sources: Sources, built or as dicts with ``type``. Each counts by its ``weight``, 1 where it has none, and is
            known by its ``name``; of two with one name the second gets a number behind it.

    Raises:
        ConfigError: There is no source, or something that is none.
    """

    def __init__(self, sources: Sequence[RewardSource | Mapping[str, Any]]) -> None:
        if not sources:
            raise ConfigError("there is no reward: name at least one, such as rewards=[dict(type=GSM8KReward)]")
        self.sources: dict[str, RewardSource] = {}
        self.weights: dict[str, float] = {}
        for given in sources:
            source: Any = REWARDS.build(dict(given)) if isinstance(given, Mapping) else given
            if not callable(getattr(source, "rewards", None)):
                raise ConfigError(f"a reward has a method rewards(rows, samples); {type(source).__name__} has none")
            name = free = str(getattr(source, "name", type(source).__name__))
            number = 2
            while name in self.sources:
                name, number = f"{free}_{number}", number + 1
            self.sources[name] = source
            self.weights[name] = check_weight(name, getattr(source, "weight", 1.0))

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        """(rows, K) float32, the weighted sum.

        Raises:
            RewardError: A source failed, or no source says anything of an answer.
        """
        return self.table(rows, samples).total

    def table(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> RewardTable:
        """The weighted sum, and what each source said.

        Args:
            rows: The prompts.
            samples: K answers to each.

        Raises:
            RewardError: A source failed or gave another number of rewards, or no source says anything of an answer.
        """
        shape = (len(rows), len(samples[0]) if samples else 0)
        by_name = {}
        total = np.zeros(shape, dtype=np.float64)
        said = np.zeros(shape, dtype=bool)
        for name, source in self.sources.items():
            values = np.asarray(source.rewards(rows, samples), dtype=np.float32)
            if values.shape != shape:
                raise RewardError(f"reward {name!r} has the shape {values.shape} for answers of the shape {shape}")
            if np.isinf(values).any():
                row, number = np.argwhere(np.isinf(values))[0]
                raise RewardError(f"reward {name!r} is infinite for {place_of(rows[row], number)}")
            known = ~np.isnan(values)
            total += self.weights[name] * np.where(known, values, 0.0)
            said |= known
            by_name[name] = values
        if not said.all():
            row, number = np.argwhere(~said)[0]
            raise RewardError(
                f"no reward says anything of {place_of(rows[row], number)} (asked: {', '.join(self.sources)}); "
                f"{int((~said).sum())} of {said.size} answers have none"
            )
        return RewardTable(total.astype(np.float32), by_name)
