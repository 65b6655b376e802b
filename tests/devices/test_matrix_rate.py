"""How fast a device multiplies matrices, on a clock that only products move."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from xrlhf.devices import matrix_rate
from xrlhf.devices.matrix_rate import measure_matrix_rate


class Clock:
    """A device of a known rate; ``delays`` are added to its products in turn. Time passes in products alone."""

    def __init__(self, rate: float, delays: tuple[float, ...] = (0.0,)) -> None:
        self.rate, self.delays = rate, delays
        self.now, self.sizes, self.synchronized = 0.0, [], 0  # type: ignore[var-annotated]

    def mm(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        size = len(left)
        self.now += 2 * size**3 / self.rate + self.delays[len(self.sizes) % len(self.delays)]
        self.sizes.append(size)
        return left if out is None else out

    def synchronize(self) -> None:
        self.synchronized += 1


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Measures a clock's rate in 4-byte numbers."""

    def measure(clock: Clock) -> float:
        monkeypatch.setattr(matrix_rate, "time", SimpleNamespace(perf_counter=lambda: clock.now))
        monkeypatch.setattr(torch, "mm", clock.mm)
        return measure_matrix_rate(torch.device("cpu"), torch.float32, clock.synchronize)

    return measure


@pytest.mark.parametrize(
    ("rate", "largest"),
    [(5e8, 128), (1e9, 256), (2e10, 512), (2e11, 1024)],
)
def test_the_size_follows_the_rate(measured: Any, rate: float, largest: int) -> None:
    """A product of 128 rows has 4.2 MFLOP: 8 ms at 0.5 GFLOP/s. At 1 GFLOP/s it is too short, and 256 rows take 34 ms.

    At 20 GFLOP/s 512 rows take 13 ms, at 200 GFLOP/s 1024 rows take 11 ms. None of it takes 0.3 s in all.
    """
    clock = Clock(rate)
    assert measured(clock) == pytest.approx(rate)
    assert max(clock.sizes) == largest
    assert clock.now < 0.3
    # One product to warm up and one timed at every size, and at least three more at the last.
    sizes = sorted(set(clock.sizes))
    assert [clock.sizes.count(size) for size in sizes[:-1]] == [2] * (len(sizes) - 1)
    assert clock.sizes.count(largest) >= 5


def test_the_best_of_several_counts(measured: Any) -> None:
    """Two of three products are held up by other work."""
    assert measured(Clock(1e9, delays=(0.0, 0.01, 0.02))) == pytest.approx(1e9)


def test_a_fast_device_is_timed_over_several_products(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 TFLOP/s a product of 128 rows takes 4.19 us, and 1193 of them 5 ms; 20 times that is 0.1 s."""
    monkeypatch.setattr(matrix_rate, "_LARGEST", 128)
    clock = Clock(1e12)
    assert measured(clock) == pytest.approx(1e12)
    assert len(clock.sizes) == pytest.approx(2 + 20 * 1193, abs=1193)
    # Before and after each of the timings.
    assert clock.synchronized == pytest.approx(2 + 2 * 20, abs=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_real_rate(dtype: torch.dtype) -> None:
    """Smoke test: no more than what it says it returns can be known of this machine."""
    assert 1e6 < measure_matrix_rate(torch.device("cpu"), dtype, lambda: None) < 1e15
