"""Numbers with their uncertainty: means over prompts, weighted means of means, and the bootstrap behind both.

A benchmark's result is a small graph. Its leaves are means over rows; everything above is a weighted mean of other
results. One bootstrap over prompts serves them all: a resample draws prompts, with replacement, inside each stratum,
every leaf of a stratum is taken again over the same draw, and what stands above is computed from the leaves. The same
draw for two models gives the interval of their difference.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from xrlhf.evaluation.metrics import wilson_interval

__all__ = ["Bootstrap", "Estimate", "Interval", "SampleMean", "Stratum", "WeightedMean"]

_RESAMPLES_AT_ONCE = 64
_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class Interval:
    """A 95 % interval.

    Args:
        low: Lower bound.
        high: Upper bound.
        method: ``"wilson"`` or ``"bootstrap"``.
    """

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Stratum:
    """The prompts that are drawn together.

    Args:
        name: Names the random stream, so that a stratum is drawn alike for every model.
        prompts: What each prompt is known by; the rows of one prompt are drawn or left out together.
    """

    name: str
    prompts: tuple[str, ...]

    @classmethod
    def of(cls, name: str, prompts: Sequence[str]) -> Stratum:
        """The stratum of rows with these prompts, repetitions allowed."""
        return cls(name, tuple(dict.fromkeys(prompts)))


@dataclass(frozen=True, eq=False)
class SampleMean:
    """The mean of one value a row.

    Args:
        name: What reports call it.
        values: (N,) float64.
        prompts: (N,) the prompt of each row, each one of ``stratum``.
        stratum: What is drawn.
        rows: (N,) what each row is known by.
        note: Half a sentence on the rule.
        parts: Nothing: it is a leaf.
    """

    name: str
    values: np.ndarray
    prompts: tuple[str, ...]
    stratum: Stratum
    rows: tuple[str, ...]
    note: str = ""
    parts: tuple[tuple[Estimate, float], ...] = ()

    @property
    def value(self) -> float | None:
        """The mean; None without rows."""
        return float(np.mean(self.values)) if len(self.values) else None

    @property
    def num_rows(self) -> int:
        return len(self.values)

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Sum of the values and number of rows of each prompt of the stratum."""
        index = {prompt: place for place, prompt in enumerate(self.stratum.prompts)}
        places = np.array([index[prompt] for prompt in self.prompts], dtype=np.int64)
        size = len(self.stratum.prompts)
        return np.bincount(places, self.values, size), np.bincount(places, minlength=size).astype(np.float64)


@dataclass(frozen=True, eq=False)
class WeightedMean:
    """A weighted mean of other results; those without a value are left out, and named.

    Args:
        name: What reports call it.
        parts: Each part and its weight.
        note: Half a sentence on the rule.
        total: Take the weighted sum instead; it then needs every part.
    """

    name: str
    parts: tuple[tuple[Estimate, float], ...]
    note: str = ""
    total: bool = False

    @property
    def present(self) -> list[tuple[Estimate, float]]:
        """The parts that have a value; none where a sum lacks one."""
        found = [(part, weight) for part, weight in self.parts if part.value is not None]
        return [] if self.total and len(found) < len(self.parts) else found

    @property
    def value(self) -> float | None:
        found = self.present
        if not found:
            return None
        divisor = 1.0 if self.total else sum(weight for _, weight in found)
        return sum(weight * part.value for part, weight in found if part.value is not None) / divisor

    @property
    def num_rows(self) -> int:
        """Rows behind it; those that several parts share count once."""
        return len({row for leaf in _leaves(self) for row in leaf.rows})


Estimate = SampleMean | WeightedMean


def _leaves(estimate: Estimate) -> list[SampleMean]:
    if isinstance(estimate, SampleMean):
        return [estimate]
    return [leaf for part, _ in estimate.parts for leaf in _leaves(part)]


@dataclass
class Bootstrap:
    """Resamples prompts, the same way each time it is asked.

    Args:
        num_resamples: How many.
        seed: Of the random stream.
    """

    num_resamples: int = 2000
    seed: int = 0
    _known: dict[int, tuple[Estimate, np.ndarray]] = field(default_factory=dict, repr=False)

    def resample(self, estimate: Estimate) -> np.ndarray:
        """The estimate in every resample: (num_resamples,) float64, NaN where a resample leaves nothing to average."""
        known = self._known.get(id(estimate))
        if known is None:
            # The estimate is kept beside its values, so that its id stays its own.
            known = self._known[id(estimate)] = (estimate, self._compute(estimate))
        return known[1]

    def _compute(self, estimate: Estimate) -> np.ndarray:
        if isinstance(estimate, SampleMean):
            return self._resample_rows(estimate)
        found = estimate.present
        if not found:
            return np.full(self.num_resamples, np.nan)
        divisor = 1.0 if estimate.total else sum(weight for _, weight in found)
        return np.sum([weight * self.resample(part) for part, weight in found], axis=0) / divisor

    def _resample_rows(self, estimate: SampleMean) -> np.ndarray:
        size = len(estimate.stratum.prompts)
        result = np.full(self.num_resamples, np.nan)
        if not estimate.num_rows:
            return result
        sums = np.stack(estimate.sums(), axis=1)
        stream = np.random.default_rng([self.seed, zlib.crc32(estimate.stratum.name.encode())])
        for start in range(0, self.num_resamples, _RESAMPLES_AT_ONCE):
            stop = min(start + _RESAMPLES_AT_ONCE, self.num_resamples)
            drawn = np.stack(
                [np.bincount(stream.integers(size, size=size), minlength=size) for _ in range(stop - start)]
            )
            total, count = (drawn @ sums).T
            np.divide(total, count, out=result[start:stop], where=count > 0)
        return result

    def interval(self, estimate: Estimate) -> Interval | None:
        """Its 95 % interval; None where there is nothing to resample, that is fewer than two prompts.

        A mean of values between 0 and 1 over rows that share no prompt gets Wilson's; all else the 2.5 % and 97.5 %
        quantiles of the resamples.
        """
        if estimate.value is None:
            return None
        if isinstance(estimate, SampleMean):
            values, independent = estimate.values, len(set(estimate.prompts)) == estimate.num_rows
            if independent and values.min() >= 0 and values.max() <= 1:
                return Interval(*wilson_interval(float(values.sum()), len(values)), "wilson")
        if all(len(leaf.stratum.prompts) < 2 for leaf in _leaves(estimate)):
            return None
        return _percentiles(self.resample(estimate))

    def difference(self, one: Estimate, other: Estimate) -> tuple[Interval | None, float | None]:
        """The 95 % interval of ``one`` minus ``other`` over the same prompts, and the two-sided p-value of 0.

        Both must be made of the same strata: the draw is shared, so what makes a prompt easy for both cancels.
        """
        if one.value is None or other.value is None or all(len(leaf.stratum.prompts) < 2 for leaf in _leaves(one)):
            return None, None
        drawn = self.resample(one) - self.resample(other)
        drawn = drawn[~np.isnan(drawn)]
        if not len(drawn):
            return None, None
        # One added to both counts: a p-value of 0 would claim more than a finite number of resamples can.
        below, above = int((drawn <= 0).sum()) + 1, int((drawn >= 0).sum()) + 1
        return _percentiles(drawn), min(1.0, 2 * min(below, above) / (len(drawn) + 1))


def _percentiles(values: np.ndarray) -> Interval | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, _TAILS)
    return Interval(float(low), float(high), "bootstrap")
