"""How fast a device multiplies matrices: measured, not read from a data sheet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

__all__ = ["measure_matrix_rate"]

_SMALLEST = 128
_LARGEST = 4096
_LONG_ENOUGH_SECONDS = 0.005
_REPEAT_SECONDS = 0.1
_LEAST_REPEATS = 3


@torch.no_grad()
def measure_matrix_rate(device: torch.device, dtype: torch.dtype, synchronize: Callable[[], None]) -> float:
    """The best rate seen in products of two square matrices, with the threads and precision settings of the process.

    The matrices are doubled in size until one product takes 5 ms (or 4096 rows are reached, after which several
    products are timed as one), and repeated for 0.1 s at that size: a quarter of a second in all, or less, on a slow
    core, and yet a fast device is not measured by how fast it is told what to do. Random numbers come from a generator
    of their own.

    Args:
        device: Where to multiply.
        dtype: Type of the matrices.
        synchronize: Waits until the device is done.

    Returns:
        Floating-point operations a second.
    """

    def seconds(number: int = 1) -> float:
        synchronize()
        began = time.perf_counter()
        for _ in range(number):
            torch.mm(left, right.t(), out=product)
        synchronize()
        return time.perf_counter() - began

    # On the CPU, since not every device has generators that can be made.
    generator = torch.Generator().manual_seed(0)
    size, best = _SMALLEST, 0.0
    while True:
        # Numbers around 0, as in training: a processor that saves power is faster at constants.
        left, right = (torch.rand(size, size, generator=generator, dtype=dtype).sub_(0.5).to(device) for _ in range(2))
        # Not timed, since the first product of a size also loads what computes it.
        product = torch.mm(left, right.t())
        taken = seconds()
        best = max(best, 2 * size**3 / taken)
        if taken >= _LONG_ENOUGH_SECONDS or size >= _LARGEST:
            break
        size *= 2
    number = math.ceil(_LONG_ENOUGH_SECONDS / taken)
    repeats, stop_at = 0, time.perf_counter() + _REPEAT_SECONDS
    while repeats < _LEAST_REPEATS or time.perf_counter() < stop_at:
        best = max(best, number * 2 * size**3 / seconds(number))
        repeats += 1
    return best
