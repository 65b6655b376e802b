"""From the rewards of answers to the scores that are learnt from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from xrlhf.errors import ConfigError
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
    their standard deviation; what lies beyond ``clip`` is cut; an answer that did not end loses ``no_end_penalty``; a
    long one loses a part of ``overlong_penalty`` that grows evenly over the last ``overlong_buffer`` tokens before
    ``overlong_length``, and all of it beyond.

    Args:
        baseline: Any number.
        normalise: Whether scores are normalised by statistics that run on over the whole training.
        clip: Largest size of a score, greater than 0; None for no limit.
        no_end_penalty: 0 or greater.
        overlong_length: Tokens of an answer at which it loses all of ``overlong_penalty``, 1 or more; None for no such
            penalty.
        overlong_buffer: Tokens before ``overlong_length`` from which on it loses something, from 1 to that length.
        overlong_penalty: 0 or greater.

    Reference:
        Yu et al. 2025, "DAPO", arXiv 2503.14476, equation 13: L_max is ``overlong_length``, L_cache
        ``overlong_buffer``, and the penalty 1.

    Raises:
        ConfigError: An option has a value that is not accepted.
    """

    def __init__(
        self,
        baseline: float = 0.0,
        normalise: bool = False,
        clip: float | None = None,
        no_end_penalty: float = 0.0,
        overlong_length: int | None = None,
        overlong_buffer: int | None = None,
        overlong_penalty: float = 1.0,
    ) -> None:
        owner = "RLTrainLoop"
        self.baseline = number_option(owner, "score_baseline", baseline, minimum=-math.inf)
        self.normalise = switch_option(owner, "score_normalise", normalise)
        self.clip = None if clip is None else number_option(owner, "score_clip", clip, exclusive=True)
        self.no_end_penalty = number_option(owner, "no_end_penalty", no_end_penalty)
        self.overlong_penalty = number_option(owner, "overlong_penalty", overlong_penalty)
        if (overlong_length is None) != (overlong_buffer is None):
            raise ConfigError(f"{owner}: overlong_length and overlong_buffer belong together: give both, or neither")
        self.overlong: tuple[int, int] | None = None
        if overlong_length is not None and overlong_buffer is not None:
            for name, value in (("overlong_length", overlong_length), ("overlong_buffer", overlong_buffer)):
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise ConfigError(f"{owner}: {name} must be a whole number of at least 1, got {value!r}")
            if overlong_buffer > overlong_length:
                raise ConfigError(
                    f"{owner}: overlong_buffer is {overlong_buffer}, more than overlong_length, {overlong_length}: "
                    "take at most that"
                )
            self.overlong = overlong_length, overlong_buffer
        self.moments = RunningMoments()

    def is_overlong(self, lengths: np.ndarray) -> np.ndarray:
        """Which answers lose something for their length, bool, of any shape."""
        if self.overlong is None:
            return np.zeros(np.shape(lengths), dtype=bool)
        length, buffer = self.overlong
        return np.asarray(lengths) > length - buffer

    def scores(self, rewards: np.ndarray, has_ended: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(P, K) float64 scores, NaN where there is no reward.

        Args:
            rewards: (P, K), NaN where no source said anything.
            has_ended: (P, K) bool.
            lengths: (P, K), tokens of each answer.
        """
        scores = np.asarray(rewards, dtype=np.float64) - self.baseline
        if self.normalise:
            self.moments.add(scores[~np.isnan(scores)])
            scores = (scores - self.moments.mean) / self.moments.std
        if self.clip is not None:
            scores = scores.clip(-self.clip, self.clip)
        scores = np.where(has_ended, scores, scores - self.no_end_penalty)
        if self.overlong is not None:
            length, buffer = self.overlong
            scores = scores - self.overlong_penalty * ((lengths - (length - buffer)) / buffer).clip(0.0, 1.0)
        return scores

    def state(self) -> dict[str, float]:
        """What a checkpoint holds of it."""
        return self.moments.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.moments.load_state(state)
