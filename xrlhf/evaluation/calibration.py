"""Whether sigmoid(margin) is the probability that the better answer is preferred."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xrlhf.evaluation.metrics import wilson_interval
from xrlhf.evaluation.pair_table import PairTable

__all__ = ["Calibration", "ReliabilityBin", "calibration", "fit_temperature"]

_NUM_BINS = 10
_NUM_FOLDS = 5
_LARGEST_SHARPNESS = 1e3


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs whose confidence lies in ``[low, high)``; the last bin includes its upper end.

    Args:
        low: Lower end, one half or more.
        high: Upper end.
        num_pairs: Pairs inside.
        confidence: Their mean confidence; None where there are none.
        accuracy: Share of them ranked right, a tie counting one half.
        accuracy_low: Lower bound of its 95 % interval (Wilson, over prompts).
        accuracy_high: Upper bound.
    """

    low: float
    high: float
    num_pairs: int
    confidence: float | None
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None


@dataclass(frozen=True)
class Calibration:
    """Calibration of the implied preference probability p = sigmoid(margin).

    Args:
        log_loss: Mean of -log p; ln 2 = .693 is what a model without an opinion gets.
        brier: Mean of (1 - p) squared; .25 without an opinion.
        ece: Expected calibration error over the bins of the folded confidence max(p, 1 - p).
        temperature: T for which sigmoid(margin / T) has the least log-loss over all pairs; None where no finite
            positive T is best (every pair is right, or the margins are no better than none).
        ece_after: ECE of sigmoid(margin / T), each fifth of the prompts with the T of the others; None where one of
            these has no temperature.
        log_loss_after: Log-loss of the same.
        bins: Of the reliability diagram.
    """

    log_loss: float
    brier: float
    ece: float
    temperature: float | None
    ece_after: float | None
    log_loss_after: float | None
    bins: tuple[ReliabilityBin, ...]


def calibration(pairs: PairTable) -> Calibration | None:
    """Calibration over all pairs, every row counting the same; None without pairs.

    The chosen answer always comes first, so accuracy against p itself would only say that p is below 1. The confidence
    is folded instead: c = max(p, 1 - p) is what the model claims for its own ranking, which is right or wrong.

    Reference:
        Guo et al., On calibration of modern neural networks, arXiv 1706.04599, equations 2, 3 and 9.
    """
    if not len(pairs):
        return None
    bins = _bins(pairs)
    after = _held_out_margins(pairs)
    scaled = None if after is None else PairTable(**{**vars(pairs), "margin": after})
    return Calibration(
        log_loss=_log_loss(pairs),
        brier=float(np.average(_sigmoid(-pairs.margin) ** 2, weights=pairs.weight)),
        ece=_ece(pairs),
        temperature=fit_temperature(pairs.margin, pairs.weight),
        ece_after=None if scaled is None else _ece(scaled),
        log_loss_after=None if scaled is None else _log_loss(scaled),
        bins=bins,
    )


def fit_temperature(margin: np.ndarray, weight: np.ndarray) -> float | None:
    """The T > 0 with the least weighted mean of -log sigmoid(margin / T).

    The mean is convex in 1 / T, so its slope there is followed to its zero by bisection.

    Args:
        margin: (N,) float64.
        weight: (N,) float64, not all 0.

    Returns:
        T, or None where the least value lies at 1 / T = 0 or beyond any bound.
    """

    def slope(sharpness: float) -> float:
        return float(np.average(-margin * _sigmoid(-sharpness * margin), weights=weight))

    if slope(0.0) >= 0 or slope(_LARGEST_SHARPNESS) <= 0:
        return None
    low, high = 0.0, _LARGEST_SHARPNESS
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def _held_out_margins(pairs: PairTable) -> np.ndarray | None:
    """Every margin over the temperature fitted on the other folds of prompts."""
    if pairs.num_prompts() < _NUM_FOLDS:
        return None
    fold = pairs.prompt % _NUM_FOLDS
    result = np.empty_like(pairs.margin)
    for number in range(_NUM_FOLDS):
        others = fold != number
        temperature = fit_temperature(pairs.margin[others], pairs.weight[others])
        if temperature is None:
            return None
        result[~others] = pairs.margin[~others] / temperature
    return result


def _bin_of(confidence: np.ndarray) -> np.ndarray:
    return np.minimum(((confidence - 0.5) * 2 * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)


def _confidence(pairs: PairTable) -> np.ndarray:
    return _sigmoid(np.abs(pairs.margin))


def _ece(pairs: PairTable) -> float:
    number = _bin_of(_confidence(pairs))
    # The gap of a bin times its share: the divisors cancel.
    gaps = np.bincount(number, pairs.weight * (pairs.right - _confidence(pairs)), _NUM_BINS)
    return float(np.abs(gaps).sum() / pairs.weight.sum())


def _bins(pairs: PairTable) -> tuple[ReliabilityBin, ...]:
    confidence = _confidence(pairs)
    number = _bin_of(confidence)
    result = []
    for index in range(_NUM_BINS):
        mask = number == index
        inside = pairs.where(mask)
        low, high = 0.5 + index / (2 * _NUM_BINS), 0.5 + (index + 1) / (2 * _NUM_BINS)
        accuracy = inside.mean(inside.right)
        if accuracy is None:
            result.append(ReliabilityBin(low, high, 0, None, None, None, None))
            continue
        num_prompts = inside.num_prompts()
        bounds = wilson_interval(min(accuracy * num_prompts, num_prompts), num_prompts)
        result.append(ReliabilityBin(low, high, len(inside), inside.mean(confidence[mask]), accuracy, *bounds))
    return tuple(result)


def _log_loss(pairs: PairTable) -> float:
    return float(np.average(np.logaddexp(0.0, -pairs.margin), weights=pairs.weight))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    # Written by its logarithm, so that no exponential overflows.
    return np.exp(-np.logaddexp(0.0, -values))
