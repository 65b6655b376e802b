"""Practice data: the same at every call and on every Python, two parts that share no prompt, ratings by the rule."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from xrlhf.data.practice.generate import (
    group_row,
    practice_dialogues,
    practice_group,
    practice_groups,
    practice_prompts,
    write_jsonl,
)
from xrlhf.data.practice.rule import score_answer, topic_of
from xrlhf.errors import ConfigError
from xrlhf.structures import Group


def digest(groups: list[Group]) -> str:
    rows = json.dumps([group_row(group) for group in groups])
    return hashlib.sha256(rows.encode()).hexdigest()[:16]


def test_the_data_never_changes_by_accident() -> None:
    # A change of the world, the phrases or the rule changes these: then measure learnability again, and update them.
    assert digest(practice_groups(200)) == "e5584d98da8bf40f"
    assert digest(practice_groups(200, seed=1, num_responses=(2, 3, 4), part="held_out")) == "e2d44aac15c52657"


def test_rows_do_not_depend_on_how_many_are_drawn() -> None:
    assert practice_groups(5) == practice_groups(20)[:5]
    assert practice_group(17) == practice_groups(20)[17]
    assert practice_groups(5) != practice_groups(5, seed=1)


def test_prompts_and_dialogues_have_the_prompts_of_the_groups() -> None:
    prompts = [group.prompt for group in practice_groups(50, seed=3)]
    assert practice_prompts(50, seed=3) == prompts
    assert [dialogue[:-1] for dialogue in practice_dialogues(50, seed=3)] == prompts


@pytest.mark.parametrize("num_responses", [2, 3, 6, (2, 3, 4)])
def test_responses_are_ranked_by_the_rule(num_responses: int | tuple[int, ...]) -> None:
    sizes = set()
    for group in practice_groups(100, num_responses=num_responses):
        assert isinstance(group.prompt, list)
        assert group.ratings is not None
        answers = [response[0]["content"] for response in group.responses]
        assert [response[0]["role"] for response in group.responses] == ["assistant"] * len(answers)
        assert list(group.ratings) == [score_answer(group.prompt, answer) for answer in answers]
        assert all(better - worse >= 2 for better, worse in zip(group.ratings, group.ratings[1:], strict=False))
        sizes.add(len(answers))
    assert sizes == ({num_responses} if isinstance(num_responses, int) else set(num_responses))


def test_the_parts_share_no_prompt() -> None:
    train = {json.dumps(prompt) for seed in (0, 1) for prompt in practice_prompts(2000, seed)}
    held_out = {json.dumps(prompt) for seed in (0, 1) for prompt in practice_prompts(500, seed, "held_out")}
    assert not train & held_out
    assert len(train) > 2000
    assert len(held_out) > 400


def test_prompts_are_one_to_three_turns_of_every_kind() -> None:
    prompts = practice_prompts(400)
    turns = [[m["role"] for m in prompt if m["role"] != "system"] for prompt in prompts]
    assert {len(roles) for roles in turns} == {1, 3, 5}
    assert all(roles == (["user", "assistant"] * 3)[: len(roles)] for roles in turns)
    assert any(prompt[0]["role"] == "system" for prompt in prompts)
    assert len({topic_of(prompt) for prompt in prompts}) == 9  # eight topics, and None


def test_dialogues_are_mediocre_and_best_answers_rare() -> None:
    scores = [score_answer(dialogue[:-1], dialogue[-1]["content"]) for dialogue in practice_dialogues(1000)]
    # A policy that imitates them starts near the middle of -9 to 6, and meets answers worth imitating more often.
    assert 0 < sum(scores) / len(scores) < 2
    assert 0.05 < sum(score == 6 for score in scores) / len(scores) < 0.25


def test_neither_length_nor_courtesy_decides() -> None:
    wins = {"longer": 0.0, "courteous": 0.0}
    groups = practice_groups(1000)
    for group in groups:
        better, worse = (response[0]["content"] for response in group.responses)
        for name, measure in (("longer", len), ("courteous", lambda text: "easure" in text or "ood" in text)):
            wins[name] += 0.5 + 0.5 * ((measure(better) > measure(worse)) - (measure(better) < measure(worse)))
    assert {name: 0.4 < count / len(groups) < 0.7 for name, count in wins.items()} == {
        "longer": True,
        "courteous": True,
    }


def test_written_rows_read_back(tmp_path: Path) -> None:
    groups = practice_groups(3, num_responses=3)
    path = tmp_path / "rows.jsonl"
    assert write_jsonl(path, groups) == 3
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == [group.prompt for group in groups]
    assert [tuple(row["responses"]) for row in rows] == [group.responses for group in groups]
    assert [tuple(row["ratings"]) for row in rows] == [group.ratings for group in groups]


@pytest.mark.parametrize("num_responses", [1, 7, (), (2, 9), True, 2.5, "3", (2, "3")])
def test_numbers_of_responses_that_are_not_accepted(num_responses: object) -> None:
    with pytest.raises(ConfigError, match=r"num_responses=.* must be a whole number from 2 to 6, or a list"):
        practice_groups(1, num_responses=num_responses)  # type: ignore[arg-type]


def test_a_part_that_does_not_exist() -> None:
    for draw in (practice_groups, practice_prompts, practice_dialogues):
        with pytest.raises(ConfigError, match="part='test' must be one of train, held_out"):
            draw(1, part="test")
