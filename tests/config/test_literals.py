from __future__ import annotations

import collections
import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe_parts
import torch

from xrlhf.config.literals import to_literals
from xrlhf.errors import ConfigError


class Colour(enum.Enum):
    RED = "red"


def test_classes_and_functions_become_names_and_the_rest_stays() -> None:
    given = {"a": [recipe_parts.RankingLoss, (1, 2.5)], 3: None, "f": recipe_parts.map_row, "t": ()}
    got = to_literals(given, "model")
    assert got == {"a": ["recipe_parts.RankingLoss", (1, 2.5)], 3: None, "f": "recipe_parts.map_row", "t": ()}
    assert type(got["a"][1]) is tuple


def test_the_result_shares_nothing_with_the_given() -> None:
    given: dict[str, Any] = {"a": [{"b": 1}]}
    got = to_literals(given, "x")
    got["a"][0]["b"] = 2
    assert given == {"a": [{"b": 1}]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.bfloat16, r"m\.x is torch.bfloat16 \(torch.dtype\), .*write its name: 'bfloat16'"),
        (torch.device("cpu"), r"write its name: 'cpu'"),
        (torch.ones(2), r"write a plain number or list"),
        (np.dtype("float32"), r"write its name: 'float32'"),
        (np.float32, r"write its name: 'float32'"),
        (np.float64(0.5), r"numpy.float64.*write a plain number or list"),
        (np.ones(2), r"numpy.ndarray.*write a plain number or list"),
        (Path("a/b"), r"write a string: 'a/b'"),
        ({1, 2}, r"\(set\).*write a list"),
        (range(3), r"write a list"),
        ({}.keys(), r"write a list"),
        (b"bytes", r"\(bytes\).*only numbers, strings"),
        (1j, r"\(complex\).*only numbers, strings"),
        (Colour.RED, r"write its value: 'red'"),
        (recipe_parts.renamed, r"functools.partial.*write a dict with type=FUNCTION"),
        (recipe_parts.RankingLoss(), r"write dict\(type=RankingLoss, \.\.\.\) to have it built when the run starts"),
        (collections.namedtuple("Pair", "a b")(1, 2), r"turn it into a plain tuple"),
        (recipe_parts.make_local(), r"m\.x: .*no importable name"),
        (collections, r"\(module\).*only numbers"),
        ({(1, 2): 3}, r"m\.x has the key \(1, 2\) \(tuple\); keys are strings or integers"),
        ({True: 3}, r"has the key True \(bool\)"),
    ],
)
def test_what_a_recipe_cannot_hold_is_named_with_what_to_write(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        to_literals(value, "m.x")
    with pytest.raises(ConfigError, match=r"^m\.0\.y"):
        to_literals([{"y": value}], "m")
