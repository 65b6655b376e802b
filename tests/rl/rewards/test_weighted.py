"""The sum of several rewards, and what each of them said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from xrlhf.errors import ConfigError, RewardError
from xrlhf.registry import REWARDS
from xrlhf.rl.rewards import ExactMatchReward, PracticeReward, WeightedRewards

Make = Callable[..., Any]
NAN = float("nan")


class Fixed:
    """Gives what it was made with."""

    def __init__(self, values: Sequence[Sequence[float]], **attributes: Any) -> None:
        self.values = np.array(values)
        self.__dict__.update(attributes)

    def rewards(self, rows: Any, samples: Any) -> np.ndarray:
        return self.values


def test_the_weighted_sum(prompt_row: Make, drawn: Make) -> None:
    """By hand: 2 * 1 - 0.5 * 4 = 0; where one says nothing, the other alone: 2 * 3 = 6 and -0.5 * 6 = -3."""
    sources = [Fixed([[1.0, 3.0], [NAN, 0.0]], name="a", weight=2.0), Fixed([[4, NAN], [6, 0]], name="b", weight=-0.5)]
    rewards = WeightedRewards(sources)
    rows, samples = [prompt_row(), prompt_row(index=1)], [drawn("x", "y")] * 2
    table = rewards.table(rows, samples)
    assert table.total.tolist() == [[0.0, 6.0], [-3.0, 0.0]]
    assert table.total.dtype == np.float32
    assert list(table.by_name) == ["a", "b"]
    np.testing.assert_array_equal(table.by_name["b"], np.array([[4, NAN], [6, 0]], np.float32))
    np.testing.assert_array_equal(rewards.rewards(rows, samples), table.total)


def test_sources_from_a_recipe(prompt_row: Make, drawn: Make) -> None:
    rewards = REWARDS.build(
        {
            "type": WeightedRewards,
            "sources": [
                {"type": PracticeReward, "weight": 0.5},
                {"type": "ExactMatchReward", "correct": 10.0},
                {"type": ExactMatchReward},
                Fixed([[1.0]]),
            ],
        }
    )
    assert rewards.weights == {"practice": 0.5, "exact_match": 1.0, "exact_match_2": 1.0, "Fixed": 1.0}
    # Unreadable and unfinished, -3; no match of the answer twice; 1 by itself.
    assert rewards.rewards([prompt_row(answer="y")], [drawn("x")]).tolist() == [[-0.5]]
    assert rewards.rewards([prompt_row(answer="x")], [drawn("x")]).tolist() == [[10.5]]


def test_an_answer_that_nobody_rewards(prompt_row: Make, drawn: Make) -> None:
    sources = [Fixed([[1.0, NAN]], name="a"), Fixed([[NAN, NAN]], name="b", weight=0.0)]
    with pytest.raises(RewardError) as caught:
        WeightedRewards(sources).table([prompt_row(index=8)], [drawn("x", "y")])
    assert str(caught.value) == (
        "no reward says anything of answer 2 to prompt 8 (asked: a, b); 1 of 2 answers have none"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0]], r"reward 'Fixed' has the shape \(1, 1\) for answers of the shape \(1, 2\)"),
        ([[1.0, float("inf")]], "reward 'Fixed' is infinite for answer 2 to prompt 0"),
    ],
)
def test_sources_that_give_something_else(values: Any, message: str, prompt_row: Make, drawn: Make) -> None:
    with pytest.raises(RewardError, match=message):
        WeightedRewards([Fixed(values)]).table([prompt_row()], [drawn("x", "y")])


def test_what_is_no_source() -> None:
    with pytest.raises(ConfigError, match="there is no reward: name at least one"):
        WeightedRewards([])
    with pytest.raises(ConfigError, match=r"a reward has a method rewards\(rows, samples\); int has none"):
        WeightedRewards([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="the weight of reward 'Fixed' must be a finite number, got 'much'"):
        WeightedRewards([Fixed([[1.0]], weight="much")])


def test_no_answers() -> None:
    assert WeightedRewards([Fixed(np.zeros((0, 0)))]).table([], []).total.shape == (0, 0)
