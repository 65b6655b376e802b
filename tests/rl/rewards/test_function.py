"""Reward functions: what they are called with, and what of their answers is taken."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xrlhf.errors import ConfigError, RewardError
from xrlhf.rl.rewards import FunctionReward

sys.path.insert(0, str(Path(__file__).parent))

Make = Callable[..., Any]


def test_a_function_by_its_name(prompt_row: Make, drawn: Make) -> None:
    source = FunctionReward("own_rewards.by_length", weight=0.1)
    assert (source.name, source.weight) == ("by_length", 0.1)
    found = source.rewards(
        [prompt_row(answer="x"), prompt_row("Say", 1, text=True)], [drawn("a", "bc"), drawn("", "d")]
    )
    assert found.tolist() == [[1.0, 2.0], [0.0, 1.0]]
    assert found.dtype == np.float32


def test_columns_and_none(prompt_row: Make, drawn: Make) -> None:
    """Columns are repeated for each answer, None where a row lacks one; None is no reward. What the function has no
    parameter for, such as ``source``, is left out."""
    source = FunctionReward("own_rewards.is_right")
    found = source.rewards(
        [prompt_row(answer="a", source="s"), prompt_row(index=1)], [drawn("a", "b"), drawn("a", "b")]
    )
    np.testing.assert_array_equal(found, np.array([[1, 0], [np.nan, np.nan]], np.float32))


def test_all_that_is_given(prompt_row: Make, drawn: Make) -> None:
    seen: dict[str, Any] = {}

    def keep(**arguments: Any) -> torch.Tensor:
        seen.update(arguments)
        return torch.tensor([1.0, 2.0])

    assert FunctionReward(keep, options={"scale": 3}).rewards([prompt_row(tests="t")], [drawn("a", "b")]).tolist() == [
        [1, 2]
    ]
    assert seen == {
        "prompts": [[{"role": "user", "content": "Q"}]] * 2,
        "completions": [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]],
        "completion_ids": [[1, 2], [1, 2]],
        "endings": ["stop", "stop"],
        "tests": ["t", "t"],
        "scale": 3,
    }


def test_a_coroutine_function(prompt_row: Make, drawn: Make) -> None:
    assert FunctionReward("own_rewards.later").rewards([prompt_row()], [drawn("a", "b")]).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "reward function given gave 1 rewards for 2 answers"),
        (None, "reward function given gave NoneType; expected a list of 2 numbers"),
        ("ab", "reward function given gave str; expected a list of 2 numbers"),
        (0.5, "reward function given gave float; expected a list of 2 numbers"),
        (
            [1.0, "2"],
            "gave str for answer 2 to prompt 5; expected a finite number, or None where it has nothing",
        ),
        ([float("nan"), 1], "gave nan for answer 1 to prompt 5; expected a finite number"),
        ([float("inf"), 1], "gave inf for answer 1 to prompt 5; expected a finite number"),
        ([[1.0, 2.0], 1], "gave list for answer 1 to prompt 5"),
    ],
)
def test_what_is_refused(value: Any, message: str, prompt_row: Make, drawn: Make) -> None:
    def given(completions: Any) -> Any:
        return value

    given.__qualname__ = "given"
    with pytest.raises(RewardError) as caught:
        FunctionReward(given).rewards([prompt_row(index=5)], [drawn("a", "b")])
    assert message in str(caught.value)


def test_an_error_inside(prompt_row: Make, drawn: Make) -> None:
    with pytest.raises(RewardError) as caught:
        FunctionReward("own_rewards.is_right").rewards([prompt_row()], [drawn("a")])
    assert "reward function own_rewards.is_right failed: TypeError: " in str(caught.value)
    assert "answer" in str(caught.value)


def test_functions_that_are_none() -> None:
    with pytest.raises(ConfigError, match="is int, which cannot be called"):
        FunctionReward("own_rewards.NOT_A_FUNCTION")
    with pytest.raises(ConfigError, match="has no 'by_lenght'; nearest: 'by_length'"):
        FunctionReward("own_rewards.by_lenght")
    with pytest.raises(ConfigError, match=r"reward function own_rewards\.later takes no scale"):
        FunctionReward("own_rewards.later", options={"scale": 2})
