from __future__ import annotations

import math
from typing import Any

import pytest

from xrlhf.errors import ConfigError
from xrlhf.losses.options import number_option, switch_option


def test_accepted_numbers_come_back_as_floats() -> None:
    for value in (0, 2, 0.5):
        result = number_option("SomeLoss", "weight", value)
        assert isinstance(result, float)
        assert result == value


@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf, "0.1", None, True])
def test_other_values_are_named_with_what_is_accepted(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        number_option("SomeLoss", "weight", value)
    assert str(caught.value) == f"SomeLoss: weight is {value!r}; accepted is a finite number 0 or greater"


def test_exclusive_minimum() -> None:
    assert number_option("SomeLoss", "bound", 1e-9, exclusive=True) == 1e-9
    with pytest.raises(ConfigError, match="SomeLoss: bound is 0; accepted is a finite number greater than 0"):
        number_option("SomeLoss", "bound", 0, exclusive=True)


def test_an_upper_bound_and_none_below() -> None:
    assert number_option("SomeLoss", "share", 0.9, below=1.0) == 0.9
    with pytest.raises(ConfigError, match=r"share is 1; accepted is a finite number greater than 0 and below 1$"):
        number_option("SomeLoss", "share", 1, exclusive=True, below=1.0)
    assert number_option("SomeLoss", "threshold", -7, minimum=-math.inf) == -7
    with pytest.raises(ConfigError, match=r"threshold is nan; accepted is a finite number$"):
        number_option("SomeLoss", "threshold", math.nan, minimum=-math.inf)


def test_switches_are_true_or_false() -> None:
    assert switch_option("SomeLoss", "mean", True) is True
    assert switch_option("SomeLoss", "mean", False) is False
    for value in (1, 0, "False", None):
        with pytest.raises(ConfigError) as caught:
            switch_option("SomeLoss", "mean", value)  # type: ignore[arg-type]
        assert str(caught.value) == f"SomeLoss: mean is {value!r}; accepted are True and False"
