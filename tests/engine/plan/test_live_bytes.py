"""Counting live tensors: once each, for as long as anybody holds them."""

from __future__ import annotations

import torch

from xrlhf.engine.plan import LiveBytes, Peak


def test_every_memory_counts_once_and_until_it_is_dropped() -> None:
    """1,000 numbers of 4 bytes, looked at twice; the peak is with 500 more."""
    counter = LiveBytes()
    with counter:
        whole = torch.zeros(1000)
        assert counter.live == 4000
        view = whole[:10]
        del whole
        assert counter.live == 4000
        counter.phase = "later"
        more = torch.ones(500)
        del more
        assert counter.live == 4000
        del view
        assert counter.live == 0
    assert counter.peak == Peak(6000, 0, "later")


def test_what_autograd_keeps_counts() -> None:
    weight = torch.zeros(1000, requires_grad=True)
    counter = LiveBytes([weight])
    with counter:
        result = weight.exp().sin().sum()
        # Of the two results inside, exp keeps its own and sin its argument, which is the same; and the sum is there.
        assert counter.live == 4000 + 4
        result.backward()
        del result
        assert counter.live == 4000
    assert weight.grad is not None


def test_known_tensors_and_pauses_do_not_count() -> None:
    known = torch.zeros(10)
    counter = LiveBytes([known])
    with counter:
        view = known.view(2, 5)
        with counter.paused():
            outside = torch.zeros(10)
        inside = torch.zeros(3)
        assert counter.live == 12
        counter.reset_peak()
        del inside
    assert counter.peak.total == 12
    assert view.shape == (2, 5)
    assert outside.shape == (10,)


def test_gradients_that_are_dropped_are_remembered() -> None:
    """Of two gradients of 40 bytes, the first has left when the second is made: 80 if it had stayed."""
    weights = [torch.zeros(10, requires_grad=True) for _ in range(2)]
    counter = LiveBytes(weights)
    with counter:
        for weight in weights:
            weight.grad = torch.ones(10)
            counter.drop_gradient(weight)
            assert weight.grad is None
            counter.drop_gradient(weight)
        assert counter.live == 0
    assert counter.peak == Peak(40, 0, "")
    assert counter.peak_with_gradients == Peak(80, 40, "")
    counter.reset_peak()
    assert counter.peak_with_gradients == Peak(0, 0, "")
