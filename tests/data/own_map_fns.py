"""Map functions as a user writes them, in a module that worker processes can import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from xrlhf.data.map_fns import pair_map_fn
from xrlhf.data.reasons import Reason, RowError
from xrlhf.structures import Group

CALLS: list[str] = []


def counted_map_fn(row: Mapping[str, Any], *, system: str = "") -> Group:
    """Leaves a trace of every call."""
    CALLS.append(row["prompt"])
    return pair_map_fn({**row, "prompt": system + row["prompt"]})


def fails_at_three_map_fn(row: Mapping[str, Any]) -> Group:
    """Has a bug that the row "prompt 3" brings to light."""
    if row["prompt"] == "prompt 3":
        return row["answer"]  # type: ignore[no-any-return]
    return pair_map_fn(row)


def interrupted_map_fn(row: Mapping[str, Any]) -> Group:
    """Ctrl-C at the row "prompt 3"."""
    if row["prompt"] == "prompt 3":
        raise KeyboardInterrupt
    return pair_map_fn(row)


def dies_map_fn(row: Mapping[str, Any]) -> Group:
    """Ends its whole process, as the kernel does when memory runs out."""
    os._exit(9)


def returns_row_map_fn(row: Mapping[str, Any]) -> Any:
    """Forgets to make a group."""
    return row


def returns_no_responses_map_fn(row: Mapping[str, Any]) -> Group:
    """Makes a group with nothing to compare."""
    return Group(row["prompt"], ())


def whole_text_map_fn(row: Mapping[str, Any]) -> Group:
    """Texts without a prompt."""
    return Group("", (row["chosen"], row["rejected"]))


def drops_all_map_fn(row: Mapping[str, Any]) -> Group:
    """Likes nothing."""
    raise RowError(Reason.BELOW_MINIMUM, "not good enough")


class AddsSystem:
    """A map function that is an object with a setting."""

    def __init__(self, system: str) -> None:
        self.system = system

    def __call__(self, row: Mapping[str, Any]) -> Group:
        return pair_map_fn({**row, "prompt": self.system + row["prompt"]})
