"""The keyed permutation: a bijection, the same everywhere, and random enough to shuffle with."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xrlhf.data.permutation import Permutation, derive_key

KEYS = st.integers(0, 2**64 - 1)


@given(size=st.integers(1, 3000), key=KEYS)
@settings(deadline=None)
def test_is_a_bijection(size: int, key: int) -> None:
    images = Permutation(size, key)(np.arange(size))
    assert images.dtype == np.int64
    assert sorted(images.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 65535, 65536, 65537])
def test_is_a_bijection_around_powers_of_two(size: int) -> None:
    images = Permutation(size, 7)(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))


@given(size=st.integers(1, 10**12), key=KEYS, data=st.data())
@settings(deadline=None)
def test_a_position_has_one_image_whoever_asks_for_it(size: int, key: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    permutation = Permutation(size, key)
    together = permutation(np.array(positions))
    assert ((together >= 0) & (together < size)).all()
    assert together.tolist() == [int(permutation(np.array([position]))[0]) for position in positions]
    assert len(set(together.tolist())) == len(set(positions))


def test_values_that_must_never_change() -> None:
    """Pinned: a run resumed by a later version, or on another machine, must see the same order."""
    assert derive_key(0, "epoch", 1) == 15586708960153829499
    assert Permutation(10, 0)(np.arange(10)).tolist() == [6, 9, 1, 5, 2, 4, 0, 7, 8, 3]
    assert Permutation(10_000_000, derive_key(42))(np.array([0, 1, 9_999_999])).tolist() == [8583092, 7493965, 1012487]


def test_shape_is_kept_and_an_empty_array_stays_empty() -> None:
    permutation = Permutation(12, 3)
    table = permutation(np.arange(12).reshape(3, 4))
    assert table.shape == (3, 4)
    assert np.array_equal(table.ravel(), permutation(np.arange(12)))
    assert permutation(np.arange(0)).shape == (0,)


def test_the_positions_given_are_left_alone() -> None:
    positions = np.arange(9, dtype=np.uint64)
    Permutation(9, 1)(positions)
    assert positions.tolist() == list(range(9))


def test_all_orders_of_three_occur_about_equally_often() -> None:
    """3000 keys over 6 orders: 500 each, standard deviation sqrt(3000 * 1/6 * 5/6) = 20.4; five of them are 102."""
    counts = dict.fromkeys(permutations(range(3)), 0)
    for key in range(3000):
        counts[tuple(Permutation(3, key)(np.arange(3)).tolist())] += 1
    assert all(398 <= count <= 602 for count in counts.values()), counts


def test_every_element_is_as_likely_at_every_position() -> None:
    """4000 keys over 10 elements: 400 each, standard deviation sqrt(4000 * 0.1 * 0.9) = 19; five of them are 95."""
    counts = np.zeros((10, 10), dtype=int)
    for key in range(4000):
        counts[np.arange(10), Permutation(10, key)(np.arange(10))] += 1
    assert ((counts >= 305) & (counts <= 495)).all(), counts


def test_neighbours_are_sent_far_apart() -> None:
    """Two independent uniform positions out of n lie n / 3 apart on average."""
    size = 100_000
    images = Permutation(size, 5)(np.arange(size))
    assert np.abs(np.diff(images)).mean() == pytest.approx(size / 3, rel=0.02)
    assert abs(np.corrcoef(np.arange(size), images)[0, 1]) < 0.02


def test_another_key_gives_another_order() -> None:
    orders = {tuple(Permutation(50, key)(np.arange(50)).tolist()) for key in range(100)}
    assert len(orders) == 100


@pytest.mark.parametrize("size", [0, -1])
def test_refuses_a_size_below_one(size: int) -> None:
    with pytest.raises(ValueError, match=f"at least one element, got size {size}"):
        Permutation(size, 0)


@pytest.mark.parametrize("position", [-1, 10, 2**40])
def test_refuses_a_position_outside(position: int) -> None:
    with pytest.raises(IndexError, match=f"position {position} outside a permutation of 10 elements"):
        Permutation(10, 0)(np.array([3, position]))


def test_keys_tell_numbers_from_text_and_parts_from_one_another() -> None:
    keys = [derive_key(1), derive_key("1"), derive_key(1, 1), derive_key(11), derive_key("1", "1"), derive_key()]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


def test_a_numpy_integer_makes_the_key_of_its_value() -> None:
    assert derive_key(np.int64(5), "pass") == derive_key(5, "pass")  # type: ignore[arg-type]
