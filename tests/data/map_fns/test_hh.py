"""HH transcripts: the turn rule, and all rows of a real split."""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xrlhf.data.map_fns import hh_map_fn
from xrlhf.data.map_fns.hh import parse_transcript
from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources import open_source
from xrlhf.errors import ConfigError
from xrlhf.structures import Group, Message

MARKERS = {"user": "Human", "assistant": "Assistant"}


def transcript(*turns: tuple[str, str]) -> str:
    return "".join(f"\n\n{MARKERS[role]}: {text}" for role, text in turns)


def texts(messages: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


ASK = ("user", "Name a fruit.")


def pair(chosen: str, rejected: str, ask: tuple[str, str] = ASK) -> dict[str, str]:
    return {
        "chosen": transcript(ask, ("assistant", chosen)),
        "rejected": transcript(ask, ("assistant", rejected)),
    }


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("An apple.", "A brick."),
        ("Apple, sure.", "Apples are red."),
        ("It says: Human: nature is odd.", "No."),
        ("One.\n\nTwo.", "No."),
        (" two blanks", "a\n"),
        ("Human: as text", "Assistant: as text"),
        ("\nHuman: one newline", "\n\nHuman without a colon"),
    ],
)
def test_answers_are_kept_to_the_letter(chosen: str, rejected: str) -> None:
    group = hh_map_fn(pair(chosen, rejected))
    assert texts(group.prompt) == [ASK]
    assert [texts(answer) for answer in group.responses] == [[("assistant", chosen)], [("assistant", rejected)]]
    assert group.ratings is None


def test_a_marker_without_its_blank() -> None:
    row = {"chosen": "\n\nHuman:Hi\n\nAssistant:a", "rejected": "\n\nHuman:Hi\n\nAssistant:b"}
    group = hh_map_fn(row)
    assert texts(group.prompt) == [("user", "Hi")]
    assert texts(group.responses[0]) == [("assistant", "a")]


def test_three_newlines_belong_one_to_the_text() -> None:
    row = {"chosen": "\n\nHuman: Hi\n\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\n\nAssistant: b"}
    assert texts(hh_map_fn(row).prompt) == [("user", "Hi\n")]


def test_the_row_is_left_alone() -> None:
    row = {**pair("a", "b"), "id": 3, "other": []}
    before = copy.deepcopy(row)
    assert hh_map_fn(row).meta == {"id": 3}
    assert row == before


def test_blank_answers_are_dropped_or_kept() -> None:
    row = pair("", "Ok")
    with pytest.raises(RowError) as caught:
        hh_map_fn(row)
    assert (caught.value.reason, caught.value.detail) == (Reason.EMPTY, "chosen is blank")
    assert texts(hh_map_fn(row, empty="keep").responses[0]) == [("assistant", "")]


ANSWER = ("assistant", "a")


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"chosen": "x"}, Reason.WRONG_ROLES, r"chosen does not begin with '\n\nHuman:'"),
        ({"chosen": ""}, Reason.WRONG_ROLES, r"chosen does not begin with '\n\nHuman:'"),
        ({"chosen": "x" + transcript(ASK, ANSWER)}, Reason.WRONG_ROLES, r"chosen does not begin with '\n\nHuman:'"),
        ({"chosen": transcript(ANSWER)}, Reason.WRONG_ROLES, r"chosen does not begin with '\n\nHuman:'"),
        ({"chosen": None}, Reason.WRONG_TYPE, "chosen is null; expected a transcript as text"),
        ({"chosen": []}, Reason.WRONG_TYPE, "chosen is list; expected a transcript as text"),
        (
            {"chosen": transcript(ASK, ANSWER)},
            Reason.MISSING_COLUMN,
            "column 'rejected' is missing; the row has 'chosen'",
        ),
        (
            {"chosen": transcript(ASK), "rejected": transcript(ASK, ANSWER)},
            Reason.WRONG_ROLES,
            "chosen ends with a message by the user; expected assistant",
        ),
        (
            {"chosen": transcript(("user", "p"), ANSWER), "rejected": transcript(("user", "q"), ANSWER)},
            Reason.NO_PROMPT,
            "chosen and rejected share no message by the user before they differ",
        ),
        (pair("a", "b", ask=("user", " ")), Reason.NO_PROMPT, "the prompt is blank"),
        (pair("a", "a"), Reason.IDENTICAL, "chosen and rejected are the same"),
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, Any], reason: Reason, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        hh_map_fn(row)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_a_wrong_option() -> None:
    with pytest.raises(ConfigError, match="empty='skip'; expected one of 'drop', 'keep'"):
        hh_map_fn(pair("a", "b"), empty="skip")  # type: ignore[arg-type]


def without_markers(text: str) -> bool:
    return "\n\nHuman:" not in text and "\n\nAssistant:" not in text


near_markers = st.text(st.sampled_from("ab :\nHuman"), max_size=12)
turn_text = (near_markers | st.text(max_size=12)).filter(without_markers)
turns = st.tuples(st.sampled_from(["user", "assistant"]), turn_text)


@settings(deadline=None)
@given(st.lists(turns, max_size=6))
def test_a_transcript_reads_back_to_the_letter(more: list[tuple[str, str]]) -> None:
    written = [("user", "first"), *more]
    assert texts(parse_transcript(transcript(*written), "chosen")) == written


@settings(deadline=None)
@given(st.lists(turns, max_size=4), turn_text, turn_text)
def test_pairs_read_back_to_the_letter(more: list[tuple[str, str]], chosen: str, rejected: str) -> None:
    shared = [("user", "first"), *more, ("user", "last")]
    row = {
        name: transcript(*shared, ("assistant", text)) for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    if chosen == rejected:
        with pytest.raises(RowError):
            hh_map_fn(row, empty="keep")
        return
    group = hh_map_fn(row, empty="keep")
    assert texts(group.prompt) == shared
    assert [texts(answer) for answer in group.responses] == [[("assistant", chosen)], [("assistant", rejected)]]


def test_schema_rows(rows_of: Callable[[str], list[dict[str, Any]]]) -> None:
    """Seven rows: plain, several turns, shared first words, a role word in a text, a blank line, empty, two turns."""
    plain, several, shared, role_word, blank_line, empty, two = rows_of("hh")
    assert texts(hh_map_fn(plain).prompt) == [ASK]
    assert texts(hh_map_fn(several).prompt) == [("user", "Hi"), ("assistant", "Hello!"), ASK]
    assert [texts(answer) for answer in hh_map_fn(shared).responses] == [
        [("assistant", "Apple, sure.")],
        [("assistant", "Apples are red.")],
    ]
    assert texts(hh_map_fn(role_word).responses[0]) == [("assistant", "It says: Human: nature is odd.")]
    assert texts(hh_map_fn(blank_line).responses[0]) == [("assistant", "One.\n\nTwo.")]
    assert texts(hh_map_fn(empty, empty="keep").responses[0]) == [("assistant", "")]
    assert texts(hh_map_fn(two).responses[0]) == [("assistant", "No."), ("assistant", " I mean yes.")]
    assert texts(hh_map_fn(two).prompt) == [("user", "Are A and B the same?")]


@pytest.fixture(scope="module")
def odd(shared_data: Path) -> dict[str, list[int]]:
    """Numbers of the rows of the split that are odd in some way."""
    return json.loads((shared_data / "hh-rlhf" / "odd_rows.json").read_text())


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> list[Any]:
    return [row.value for row in open_source(shared_data / "hh-rlhf" / "harmless-base.test.jsonl.gz").rows()]


@pytest.fixture(scope="module")
def groups(rows: list[Any]) -> list[Group]:
    return [hh_map_fn(row, empty="keep") for row in rows]


def outcome(row: Any) -> str:
    try:
        hh_map_fn(row)
    except RowError as error:
        return str(error.reason)
    return "group"


class TestHarmlessBase:
    """All 2,312 rows of the harmless-base test split."""

    def test_every_row_is_a_group_or_counted(self, rows: list[Any], odd: dict[str, list[int]]) -> None:
        outcomes = [outcome(row) for row in rows]
        assert Counter(outcomes) == {"group": 2308, "empty": 4}
        assert [index for index, found in enumerate(outcomes) if found == "empty"] == odd["empty_chosen_answer"]

    def test_no_character_is_lost(self, rows: list[Any], groups: list[Group]) -> None:
        for row, group in zip(rows, groups, strict=True):
            chosen, rejected = group.conversations()
            assert transcript(*texts(chosen)) == row["chosen"]
            assert transcript(*texts(rejected)) == row["rejected"]

    def test_prompts_are_shared_and_end_with_a_question(self, groups: list[Group]) -> None:
        for group in groups:
            prompt: Any = group.prompt
            assert prompt[0]["role"] == prompt[-1]["role"] == "user"
            assert group.responses[0] != group.responses[1]

    def test_a_marker_inside_an_answer_stays_in_that_answer(
        self, groups: list[Group], odd: dict[str, list[int]]
    ) -> None:
        several = {
            index: [len(answer) for answer in group.responses]
            for index, group in enumerate(groups)
            if any(len(answer) > 1 for answer in group.responses)
        }
        assert sorted(several) == odd["turn_marker_inside_an_answer"]
        # Row 1950 has it on the rejected side, the others on the chosen one; no answer holds a turn of the user.
        assert several == {1254: [2, 1], 1688: [2, 1], 1950: [1, 2], 1952: [2, 1], 2036: [2, 1]}
        assert all(m["role"] == "assistant" for g in groups for answer in g.responses for m in answer)  # type: ignore[index]

    def test_two_answers_in_a_row_inside_a_prompt_stay_two(
        self, groups: list[Group], odd: dict[str, list[int]]
    ) -> None:
        def repeats(prompt: list[Message]) -> bool:
            return any(one["role"] == two["role"] for one, two in itertools.pairwise(prompt))

        found = [index for index, group in enumerate(groups) if repeats(group.prompt)]  # type: ignore[arg-type]
        assert found == odd["two_assistant_turns_in_a_row_inside_the_prompt"]

    def test_numbers_of_turns(self, groups: list[Group]) -> None:
        """The set's description counts the turns of the chosen side: 662 rows have 2, 580 have 4, and so on."""
        turns_of = Counter(len(group.conversations()[0]) for group in groups)
        assert [turns_of[count] for count in (2, 4, 6, 8)] == [662, 580, 589, 354]
        assert max(turns_of) == 36
        # The rows with an odd number: four with a marker inside the chosen answer, four with one inside the prompt.
        assert sum(count for number, count in turns_of.items() if number % 2) == 8

    def test_distinct_prompts(self, groups: list[Group]) -> None:
        assert len({json.dumps(group.prompt) for group in groups}) == 2310
