"""From the rewards of answers to the scores that are learnt from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from xrlhf.losses.options import number_option, switch_option

__all__ = ["RunningMoments", "ScoreRule"]


class RunningMoments:
    """Mean and standard deviation of all that was seen so far.

    Reference:
        Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.squares = 0.0

    @property
    def std(self) -> float:
        """Of a sample; 1 while fewer than two values, or only equal ones, were seen."""
        if self.count < 2 or self.squares <= 0:
            return 1.0
        return math.sqrt(self.squares / (self.count - 1))

    def add(self, values: np.ndarray) -> None:
        """Take up more values, of any shape."""
        values = np.asarray(values, dtype=np.float64).ravel()
        if not len(values):
            return
        count, mean = len(values), float(values.mean())
        squares = float(((values - mean) ** 2).sum())
        total, difference = self.count + count, mean - self.mean
        self.mean += difference * count / total
        self.squares += squares + difference**2 * self.count * count / total
        self.count = total

    def state(self) -> dict[str, float]:
        """What a checkpoint holds of it."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.count, self.mean, self.squares = (float(state[name]) for name in ("count", "mean", "squares"))


class ScoreRule:
    """What becomes of rewards before anything is learnt from them.

    In this order: ``baseline`` is subtracted; the mean of all rewards so far is subtracted and the rest divided by
    their standard deviation; what lies beyond ``clip`` is cut; an answer that did not end loses ``no_end_penalty``.

    Args:
        baseline: Any number.
        normalise: Whether scores are normalised by statistics that run on over the whole training.
        clip: Largest size of a score, greater than 0; None for no limit.
        no_end_penalty: 0 or greater.

    Raises:
        ConfigError: An option has a value that is not accepted.
    """

    def __init__(
        self,
        baseline: float = 0.0,
        normalise: bool = False,
        clip: float | None = None,
        no_end_penalty: float = 0.0,
    ) -> None:
        owner = "RLTrainLoop"
        self.baseline = number_option(owner, "score_baseline", baseline, minimum=-math.inf)
        self.normalise = switch_option(owner, "score_normalise", normalise)
        self.clip = None if clip is None else number_option(owner, "score_clip", clip, exclusive=True)
        self.no_end_penalty = number_option(owner, "no_end_penalty", no_end_penalty)
        self.moments = RunningMoments()

    def scores(self, rewards: np.ndarray, has_ended: np.ndarray) -> np.ndarray:
        """(P, K) float64 scores, NaN where there is no reward.

        Args:
            rewards: (P, K), NaN where no source said anything.
            has_ended: (P, K) bool.
        """
        scores = np.asarray(rewards, dtype=np.float64) - self.baseline
        if self.normalise:
            self.moments.add(scores[~np.isnan(scores)])
            scores = (scores - self.moments.mean) / self.moments.std
        if self.clip is not None:
            scores = scores.clip(-self.clip, self.clip)
        return np.where(has_ended, scores, scores - self.no_end_penalty)

    def state(self) -> dict[str, float]:
        """What a checkpoint holds of it."""
        return self.moments.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.moments.load_state(state)
