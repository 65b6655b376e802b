from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from xrlhf.evaluation.estimates import Bootstrap, SampleMean, Stratum, WeightedMean
from xrlhf.evaluation.metrics import wilson_interval


def mean_of(values: Sequence[float], prompts: Sequence[str] | None = None, name: str = "m") -> SampleMean:
    known = tuple(prompts if prompts is not None else map(str, range(len(values))))
    rows = tuple(f"{name}{place}" for place in range(len(values)))
    return SampleMean(name, np.array(values, dtype=np.float64), known, Stratum.of(name, known), rows)


def test_a_weighted_mean_is_over_the_parts_that_have_rows() -> None:
    """(1 * 3 + .5 * 1) / 4, whatever the weight of the empty part."""
    parts = ((mean_of([1, 1]), 3.0), (mean_of([1, 0], name="n"), 1.0), (mean_of([], name="none"), 9.0))
    assert WeightedMean("w", parts).value == pytest.approx(3.5 / 4)
    assert WeightedMean("w", parts).num_rows == 4
    assert WeightedMean("w", parts[2:]).value is None


def test_a_weighted_sum_needs_every_part() -> None:
    parts = ((mean_of([1, 1]), 0.3), (mean_of([0, 1], name="n"), 0.2))
    assert WeightedMean("w", parts, total=True).value == pytest.approx(0.4)
    assert WeightedMean("w", (*parts, (mean_of([], name="none"), 0.5)), total=True).value is None


def test_rows_that_several_parts_share_count_once() -> None:
    leaf = mean_of([1, 0])
    assert WeightedMean("w", ((leaf, 1.0), (WeightedMean("v", ((leaf, 1.0),)), 1.0))).num_rows == 2


def test_prompts_are_drawn_with_all_their_rows() -> None:
    """Prompt a has 1, 1 and prompt b has 0: two draws give a a (mean 1), a b (2/3), b b (0) at odds 1 : 2 : 1."""
    drawn = Bootstrap(num_resamples=4000).resample(mean_of([1, 1, 0], ["a", "a", "b"]))
    shares = {value: count / 4000 for value, count in Counter(drawn.round(6).tolist()).items()}
    assert shares == {
        1.0: pytest.approx(0.25, abs=0.03),
        0.666667: pytest.approx(0.5, abs=0.03),
        0.0: pytest.approx(0.25, abs=0.03),
    }


def test_the_same_draw_every_time_and_for_every_model() -> None:
    one, other = mean_of([1, 0, 0, 1, 1]), mean_of([1, 0, 0, 1, 1])
    assert np.array_equal(Bootstrap().resample(one), Bootstrap().resample(other))
    assert not np.array_equal(Bootstrap().resample(one), Bootstrap(seed=1).resample(other))
    interval, p_value = Bootstrap().difference(one, other)
    assert (interval.low, interval.high, p_value) == (0.0, 0.0, 1.0)  # type: ignore[union-attr]


def test_a_stratum_is_drawn_once_for_all_its_leaves() -> None:
    """Two leaves over the same prompts, one the complement of the other, always add up to 1."""
    values = [1.0, 0.0, 1.0, 1.0]
    one, other = mean_of(values), mean_of([1 - value for value in values])
    mean = WeightedMean("w", ((one, 1.0), (other, 1.0)))
    assert np.allclose(Bootstrap().resample(mean), 0.5)


def test_independent_rows_get_wilsons_interval() -> None:
    interval = Bootstrap().interval(mean_of([1, 1, 0, 0.5]))
    assert interval is not None
    assert (interval.low, interval.high, interval.method) == (*wilson_interval(2.5, 4), "wilson")


def test_shared_prompts_and_weighted_means_get_the_bootstraps() -> None:
    """Rows in ten pairs that are always alike: the interval is that of ten draws, wider than that of twenty."""
    values = [float(place % 3 > 0) for place in range(10) for _ in range(2)]
    shared = Bootstrap().interval(mean_of(values, [str(place // 2) for place in range(20)]))
    assert shared is not None
    assert shared.method == "bootstrap"
    low, high = wilson_interval(sum(values) / 2, 10)
    assert shared.high - shared.low == pytest.approx(high - low, rel=0.2)
    weighted = Bootstrap().interval(WeightedMean("w", ((mean_of(values), 1.0), (mean_of([0, 1], name="n"), 1.0))))
    assert weighted is not None
    assert weighted.method == "bootstrap"


def test_nothing_to_resample() -> None:
    bootstrap = Bootstrap()
    assert bootstrap.interval(mean_of([])) is None
    assert bootstrap.interval(mean_of([1, 0], ["a", "a"])) is None
    assert bootstrap.difference(mean_of([]), mean_of([])) == (None, None)
    assert np.isnan(bootstrap.resample(WeightedMean("w", ((mean_of([]), 1.0),)))).all()


def test_a_clear_difference_has_a_small_p_value() -> None:
    """40 rows right against 40 wrong: no resample is on the other side, and p stays above 0."""
    interval, p_value = Bootstrap(num_resamples=1000).difference(mean_of([1.0] * 40), mean_of([0.0] * 40))
    assert (interval.low, interval.high) == (1.0, 1.0)  # type: ignore[union-attr]
    assert p_value == pytest.approx(2 / 1001)
