"""Exact matches, numbers of word problems, and the rule of the practice data."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrlhf.data.practice import BEST_SCORE, best_answer, practice_prompts
from xrlhf.errors import ConfigError, RewardError
from xrlhf.rl.rewards import ExactMatchReward, GSM8KReward, PracticeReward
from xrlhf.rl.rewards.gsm8k import final_number, marked_number

Make = Callable[..., Any]

# ------------------------------------------------------------------------------------------------ exact match


def test_exact_match(prompt_row: Make, drawn: Make) -> None:
    source = ExactMatchReward(correct=2.0, wrong=-1.0)
    found = source.rewards([prompt_row(answer="New  York")], [drawn("New York", " New\nYork ", "new york", "York")])
    assert found.tolist() == [[2.0, 2.0, -1.0, -1.0]]


def test_exact_match_of_a_part(prompt_row: Make, drawn: Make) -> None:
    """The last match counts; without a match the answer is wrong; numbers in the column are read as text."""
    source = ExactMatchReward(column="solution", pattern=r"<answer>(.*?)</answer>", ignore_case=True)
    texts = ["<answer>a</answer> no, <answer> B </answer>", "b", "<answer>a</answer>"]
    assert source.rewards([prompt_row(solution="b")], [drawn(*texts)]).tolist() == [[1.0, 0.0, 0.0]]
    assert source.rewards([prompt_row(solution=7)], [drawn("<answer>7</answer>")]).tolist() == [[1.0]]


def test_a_column_that_is_missing(prompt_row: Make, drawn: Make) -> None:
    with pytest.raises(RewardError) as caught:
        ExactMatchReward().rewards([prompt_row(index=4, source="x", solution="y")], [drawn("a")])
    assert str(caught.value) == "reward 'exact_match': prompt 4 has no column 'answer'; it has solution, source"
    with pytest.raises(RewardError, match="it has no columns beside it"):
        GSM8KReward().rewards([prompt_row()], [drawn("a")])
    with pytest.raises(RewardError, match="column 'answer' of prompt 0 is list; expected text or a number"):
        GSM8KReward().rewards([prompt_row(answer=["4"])], [drawn("a")])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "is no regular expression"), ("[0-9]+", r"has no group \(\.\.\.\) that says what is compared")],
)
def test_patterns_that_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExactMatchReward(pattern=pattern)


# ------------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", 72),
        ("48/2 = 24\n#### 72", 72),
        ("#### 1,234", 1234),
        ("#### -3", -3),
        ("#### \u22123", -3),
        ("#### $1,234.50", Fraction("1234.5")),
        ("#### -$5", -5),
        ("#### $-5", -5),
        ("####18 eggs a day.", 18),
        ("#### 18.", 18),
        ("#### 50%", 50),
        ("#### 1/2", Fraction(1, 2)),
        ("#### 3\nOr rather:\n#### 4", 4),
        ("The answer is 1,000,000.", 1000000),
        ("She makes 9 * 2 = $18 a day.", 18),
        ("It is 10-3", 3),
        ("It is 10 - 3 = 7", 7),
        ("So x = -7.", -7),
        ("- 5 apples", 5),
        (r"thus \boxed{42} of the 100", 42),
        (r"thus \boxed{1,042}", 1042),
        (r"thus \boxed{x} of the 100", 100),
        ("#### none, but 5 before", 5),
        (".5", Fraction(1, 2)),
        ("1/0", 1),
        ("nothing", None),
        ("", None),
        ("####", None),
    ],
)
def test_the_number_of_an_answer(text: str, number: Any) -> None:
    assert final_number(text) == number


def test_without_the_mark_there_is_no_marked_number() -> None:
    assert marked_number("It is 5") is None
    assert marked_number("#### 5") == 5


@given(st.integers(-(10**9), 10**9), st.integers(0, 99))
def test_numbers_however_they_are_written(whole: int, cents: int) -> None:
    wanted = abs(whole) + Fraction(cents, 100)
    sign = "-" if whole < 0 else ""
    for written in (f"{abs(whole)}.{cents:02}", f"{abs(whole):,}.{cents:02}", f"${abs(whole):,}.{cents:02}"):
        assert final_number(f"It costs {sign}{written} in all.") == (-wanted if whole < 0 else wanted)


def test_gsm8k_rewards(prompt_row: Make, drawn: Make) -> None:
    row = prompt_row(answer="He has 2 + 2 = <<2+2=4>>4.\n#### 1,004")
    texts = ["#### 1004", "So it is $1,004.00.", "1004 is wrong, it is 7", "I do not know."]
    assert GSM8KReward().rewards([row], [drawn(*texts)]).tolist() == [[1.0, 1.0, 0.0, 0.0]]
    strict = GSM8KReward(strict=True, correct=2.0, wrong=-0.5)
    assert strict.rewards([row], [drawn(*texts)]).tolist() == [[2.0, -0.5, -0.5, -0.5]]


@pytest.mark.parametrize("answer", ["4", 4, " 4. ", "$4", "4.0"])
def test_a_column_with_the_number_alone(answer: Any, prompt_row: Make, drawn: Make) -> None:
    assert GSM8KReward().rewards([prompt_row(answer=answer)], [drawn("#### 4")]).tolist() == [[1.0]]


@pytest.mark.parametrize("answer", ["four", "4 or 5", "#### four"])
def test_a_column_without_a_number(answer: str, prompt_row: Make, drawn: Make) -> None:
    with pytest.raises(RewardError, match="column 'answer' of prompt 3 has no number behind '####', and is no number"):
        GSM8KReward().rewards([prompt_row(index=3, answer=answer)], [drawn("4")])


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl"])
def test_the_real_rows(name: str, shared_data: Path, prompt_row: Make, drawn: Make) -> None:
    """Every row's own solution is right, also where the mark is taken away, and one more is wrong."""
    lines = (shared_data / "gsm8k" / name).read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    rows = [prompt_row(index=i, answer=answer) for i, answer in enumerate(answers)]
    numbers = [marked_number(answer) for answer in answers]
    assert all(number is not None and number.denominator == 1 for number in numbers)
    # Independently of the reader: what stands behind the mark, less commas.
    assert [int(n or 0) for n in numbers] == [int(a.rpartition("####")[2].replace(",", "")) for a in answers]
    texts = [
        (a, a.replace("####", "The answer is"), f"It is ${n:,}.", f"#### {n + 1}")
        for a, n in zip(answers, map(int, numbers), strict=True)
    ]
    found = GSM8KReward().rewards(rows, [drawn(*some) for some in texts])
    assert found.tolist() == [[1.0, 1.0, 1.0, 0.0]] * len(rows)


# ------------------------------------------------------------------------------------------------ practice data


def test_the_practice_rule(prompt_row: Make, drawn: Make) -> None:
    for messages in practice_prompts(20):
        found = PracticeReward().rewards(
            [prompt_row(messages)], [drawn(best_answer(messages), "You waste my time.", "x")]
        )
        assert found[0, 0] == BEST_SCORE
        assert found[0, 1] < found[0, 0]
    # Unreadable and unfinished: -1 and -2.
    assert found[0, 2] == -3.0
