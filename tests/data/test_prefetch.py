from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from xrlhf.data.prefetch import prefetch


@pytest.mark.parametrize("ahead", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_same_items_in_the_same_order(count: int, ahead: int) -> None:
    assert list(prefetch(iter(range(count)), ahead=ahead)) == list(range(count))


def test_none_is_an_item_like_others() -> None:
    assert list(prefetch([None, 0, None])) == [None, 0, None]


def test_items_are_made_ahead_and_no_further() -> None:
    """With two ahead, the third is made once the first has been taken; the fourth waits for the second."""
    made: list[int] = []
    event = threading.Event()

    def items() -> Iterator[int]:
        for item in range(5):
            made.append(item)
            if item == 2:
                event.set()
            yield item

    taken = prefetch(items(), ahead=2)
    assert next(taken) == 0
    assert event.wait(10)
    assert made == [0, 1, 2]
    taken.close()  # type: ignore[attr-defined]


def test_failures_come_where_the_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the second cannot be made")

    taken = prefetch(items())
    assert next(taken) == 1
    with pytest.raises(ValueError, match="the second cannot be made"):
        next(taken)


def test_leaving_early_waits_for_nothing() -> None:
    """The thread may be at work on an item when nobody wants it any more."""
    goes_on = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        goes_on.wait(30)
        yield 1

    taken = prefetch(items(), ahead=1)
    assert next(taken) == 0
    taken.close()  # type: ignore[attr-defined]
    assert not goes_on.is_set()
    goes_on.set()
