"""The checks that map functions are made of, and every message they give."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xrlhf.data.map_fns.messages import (
    check_answer,
    check_choice,
    check_messages,
    check_prompt,
    column,
    group_of,
    integer_of,
    is_blank,
    meta_of,
    objects_of,
    ranked_group,
    rating_of,
    split_conversations,
    text_of,
)
from xrlhf.data.map_fns.sharegpt import ShareGptTags
from xrlhf.data.reasons import Reason, RowError
from xrlhf.errors import ConfigError
from xrlhf.structures import Group, Message


def say(role: str, content: str = "x") -> Message:
    return {"role": role, "content": content}


def fails(reason: Reason, detail: str, function: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(RowError) as caught:
        function(*args, **kwargs)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


class TestColumn:
    def test_a_column_that_is_there(self) -> None:
        assert column({"a-b c": None}, "a-b c") is None

    def test_a_missing_column_names_those_that_are_there(self) -> None:
        fails(
            Reason.MISSING_COLUMN,
            "column 'chosen' is missing; the row has 'prompt', 'good'; rename it",
            column,
            {"prompt": "secret", "good": "secret"},
            "chosen",
            "rename it",
        )
        fails(Reason.MISSING_COLUMN, "column 'chosen' is missing; the row has none", column, {}, "chosen")

    def test_many_and_long_names_are_cut(self) -> None:
        row = {f"{index}{'x' * 50}": 0 for index in range(20)}
        with pytest.raises(RowError) as caught:
            column(row, "chosen")
        assert caught.value.detail.endswith(", ...")
        assert caught.value.detail.count("xxx...") == 12


class TestTextOf:
    @pytest.mark.parametrize(
        ("value", "text"),
        [("", ""), (" a\n", " a\n"), ("ü😀", "ü😀"), (True, "True"), (False, "False"), (4, "4"), (2.5, "2.5")],
    )
    def test_text_and_what_json_made_of_text(self, value: Any, text: str) -> None:
        assert text_of(value, "c") == text

    @pytest.mark.parametrize(
        ("value", "found"),
        [(None, "null"), ({}, "object"), ([], "list"), (float("nan"), "not a number"), (b"", "bytes")],
    )
    def test_what_is_no_text(self, value: Any, found: str) -> None:
        fails(Reason.WRONG_TYPE, f"chosen is {found}; expected text", text_of, value, "chosen")

    def test_half_a_surrogate_pair(self) -> None:
        """JSON can write one with an escape, and no tokenizer takes it."""
        detail = "chosen holds half a surrogate pair at character 2; expected valid Unicode"
        fails(Reason.WRONG_TYPE, detail, text_of, "ab\ud83d", "chosen")


class TestRatingOf:
    @pytest.mark.parametrize(("value", "rating"), [(0, 0.0), (-3, -3.0), (2.5, 2.5)])
    def test_numbers(self, value: Any, rating: float) -> None:
        assert rating_of(value, "r") == rating

    @pytest.mark.parametrize(
        ("value", "found"),
        [(None, "null"), ("N/A", "'N/A'"), (True, "True"), (float("nan"), "nan"), (float("inf"), "inf"), ([1], "list")],
    )
    def test_what_is_no_rating(self, value: Any, found: str) -> None:
        fails(Reason.BAD_LABEL, f"score is {found}; expected a finite number", rating_of, value, "score")


class TestIntegerOf:
    @pytest.mark.parametrize(("value", "number"), [(0, 0), (-3, -3), (2.0, 2)])
    def test_whole_numbers(self, value: Any, number: int) -> None:
        found = integer_of(value, "n", range(-3, 4))
        assert (found, type(found)) == (number, int)

    @pytest.mark.parametrize(
        ("value", "found"),
        [(None, "null"), ("1", "'1'"), (True, "True"), (1.5, "1.5"), (4, "4"), (float("nan"), "nan")],
    )
    def test_what_is_none_of_them(self, value: Any, found: str) -> None:
        fails(Reason.BAD_LABEL, f"n is {found}; expected -3 to 3", integer_of, value, "n", range(-3, 4))

    def test_few_numbers_are_named(self) -> None:
        fails(Reason.BAD_LABEL, "n is 2; expected 0 or 1", integer_of, 2, "n", (0, 1))
        fails(Reason.BAD_LABEL, "n is 3; expected 0, 1 or 2", integer_of, 3, "n", (0, 1, 2))


def test_lists_of_objects() -> None:
    assert objects_of(({"a": 1},), "x", "things") == [{"a": 1}]
    fails(Reason.WRONG_TYPE, "x is object; expected a list of things", objects_of, {}, "x", "things")
    fails(Reason.WRONG_TYPE, "x[1] is text; expected an object (things)", objects_of, [{}, "a"], "x", "things")


def test_meta_keeps_what_reports_need() -> None:
    row = {"id": 0, "source": "s", "subset": None, "prompt": "p", "margin": 1, "domain": "d"}
    assert meta_of(row) == {"id": 0, "source": "s"}
    assert meta_of(row, "domain") == {"id": 0, "source": "s", "domain": "d"}


def test_a_wrong_option_is_an_error_of_the_recipe() -> None:
    with pytest.raises(ConfigError, match="map function option empty='no'; expected one of 'drop', 'keep'"):
        check_choice("empty", "no", ("drop", "keep"))


class TestCheckMessages:
    def test_messages_are_copied_in_canonical_form(self) -> None:
        given_messages = [
            {"content": "s", "role": "system", "model": "m"},
            {"content": "u", "role": "user", "name": "Ann", "timestamp": 1},
            {"content": None, "role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
            {"content": 4, "role": "tool", "tool_call_id": "1", "tool_calls": None},
            {"content": "a", "role": "assistant", "reasoning_content": "r", "loss_weight": 0.5},
        ]
        before = [dict(message) for message in given_messages]
        assert check_messages(given_messages, "m") == [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u", "name": "Ann"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
            },
            {"role": "tool", "content": "4", "tool_call_id": "1"},
            {"role": "assistant", "content": "a", "reasoning_content": "r", "loss_weight": 0.5},
        ]
        assert given_messages == before

    @pytest.mark.parametrize(
        ("marks", "kept"),
        [
            ({"weight": 0}, {"loss_weight": 0.0}),
            ({"loss": False}, {"loss_weight": 0.0}),
            ({"weight": 0.0, "loss": False, "loss_weight": 0}, {"loss_weight": 0.0}),
            ({"weight": 1}, {}),
            ({"loss": True}, {}),
            ({"weight": None, "loss": None}, {}),
            ({"loss_weight": 0.0}, {"loss_weight": 0.0}),
            ({"loss_weight": 1.0}, {"loss_weight": 1.0}),
            ({"weight": 1, "loss_weight": 1.0}, {"loss_weight": 1.0}),
        ],
    )
    def test_marks_of_turns_that_are_not_learnt(self, marks: dict[str, Any], kept: dict[str, Any]) -> None:
        assert check_messages([{**say("assistant"), **marks}], "m") == [{**say("assistant"), **kept}]

    def test_marks_mean_nothing_in_other_turns(self) -> None:
        """Some sets mark everything that is not by the assistant as not learnt."""
        assert check_messages([{**say("user"), "weight": 0, "loss": False}], "m") == [say("user")]

    @pytest.mark.parametrize(
        ("marks", "detail"),
        [
            ({"weight": 0.5}, "m[0].weight is 0.5; expected 1 or true for a turn to learn, 0 or false"),
            ({"loss": "no"}, "m[0].loss is 'no'; expected 1 or true for a turn to learn, 0 or false"),
            (
                {"weight": 1, "loss": False},
                "m[0] has weight 1 and loss False, which contradict each other; expected one of them",
            ),
        ],
    )
    def test_marks_that_say_neither(self, marks: dict[str, Any], detail: str) -> None:
        fails(Reason.BAD_LABEL, detail, check_messages, [{**say("assistant"), **marks}], "m")

    def test_an_empty_list_and_a_tuple(self) -> None:
        assert check_messages([], "m") == []
        assert check_messages((say("user"),), "m") == [say("user")]

    @pytest.mark.parametrize("text", ["", " \n"])
    def test_a_blank_system_text_gives_no_message(self, text: str) -> None:
        assert check_messages([say("system", text), say("user")], "m") == [say("user")]

    def test_text_parts_are_joined(self) -> None:
        parts = [{"type": "text", "text": "a "}, {"type": "text", "value": "b", "text": None}]
        assert check_messages([{"role": "user", "content": parts}], "m") == [say("user", "a b")]

    def test_other_tags_and_keys(self) -> None:
        tagged = [{"from": tag, "value": tag} for tag in ("system", "human", "function_call", "observation", "gpt")]
        found = check_messages(tagged, "m", role_key="from", content_key="value", roles=ShareGptTags().roles)
        assert [message["role"] for message in found] == ["system", "user", "assistant", "tool", "assistant"]

    @pytest.mark.parametrize(
        ("value", "reason", "detail"),
        [
            (None, Reason.WRONG_TYPE, "m is null; expected a list of messages"),
            ("text", Reason.WRONG_TYPE, "m is text; expected a list of messages"),
            ({"role": []}, Reason.WRONG_TYPE, "m is object; expected a list of messages"),
            (["text"], Reason.WRONG_TYPE, "m[0] is text; expected a message with 'role' and 'content'"),
            (
                [{"from": "human", "value": "x"}],
                Reason.WRONG_TYPE,
                "m[0] has 'from', 'value'; expected a message with 'role' and 'content'",
            ),
            ([{}], Reason.WRONG_TYPE, "m[0] has nothing; expected a message with 'role' and 'content'"),
            (
                [say("user"), say("bot")],
                Reason.WRONG_ROLES,
                "m[1] has the role 'bot'; expected one of system, user, assistant, tool",
            ),
            (
                [{"role": None, "content": "x"}],
                Reason.WRONG_ROLES,
                "m[0] has the role null; expected one of system, user, assistant, tool",
            ),
            (
                [{"role": ["user"], "content": "x"}],
                Reason.WRONG_ROLES,
                "m[0] has the role list; expected one of system, user, assistant, tool",
            ),
            (
                [say("user"), say("system")],
                Reason.WRONG_ROLES,
                "m[1] is by the system; a system message may only come first",
            ),
            ([{"role": "user", "content": None}], Reason.WRONG_TYPE, "m[0].content is null; expected text"),
            ([{"role": "user", "content": {}}], Reason.WRONG_TYPE, "m[0].content is object; expected text"),
            (
                [{"role": "user", "content": ["x"]}],
                Reason.WRONG_TYPE,
                "m[0].content[0] is text; expected a text part",
            ),
            (
                [{"role": "user", "content": [{"type": "image_url"}]}],
                Reason.WRONG_TYPE,
                "m[0].content[0] is a part of type 'image_url'; expected 'text'",
            ),
            (
                [{"role": "user", "content": [{"type": "text"}]}],
                Reason.WRONG_TYPE,
                "m[0].content[0] is null; expected text",
            ),
        ],
    )
    def test_what_is_no_list_of_messages(self, value: Any, reason: Reason, detail: str) -> None:
        fails(reason, detail, check_messages, value, "m")


class TestPromptsAndAnswers:
    @pytest.mark.parametrize("value", ["x", say("user"), [say("user")], (say("user"),)])
    def test_ways_to_give_a_prompt(self, value: Any) -> None:
        assert check_prompt(value, "p") == [say("user")]

    @pytest.mark.parametrize("value", ["x", say("assistant"), [say("assistant")]])
    def test_ways_to_give_an_answer(self, value: Any) -> None:
        assert check_answer(value, "a") == [say("assistant")]

    def test_a_prompt_may_end_with_a_tool(self) -> None:
        assert len(check_prompt([say("user"), say("assistant"), say("tool")], "p")) == 3

    def test_an_answer_may_have_several_turns(self) -> None:
        assert len(check_answer([say("assistant"), say("tool"), say("assistant")], "a")) == 3

    @pytest.mark.parametrize(
        ("value", "reason", "detail"),
        [
            ([], Reason.NO_PROMPT, "p holds no messages"),
            ([say("system", "")], Reason.NO_PROMPT, "p holds no messages"),
            (
                [say("user"), say("assistant")],
                Reason.WRONG_ROLES,
                "p ends with a message by the assistant; expected user or tool",
            ),
            (None, Reason.WRONG_TYPE, "p is null; expected text"),
        ],
    )
    def test_what_is_no_prompt(self, value: Any, reason: Reason, detail: str) -> None:
        fails(reason, detail, check_prompt, value, "p")

    @pytest.mark.parametrize(
        ("value", "reason", "detail"),
        [
            ([], Reason.EMPTY, "a holds no messages"),
            (
                [say("user"), say("assistant")],
                Reason.WRONG_ROLES,
                "a begins with a message by the user; expected assistant (where the answers hold whole conversations, "
                "use conversation_pair_map_fn)",
            ),
            (
                [say("assistant"), say("user")],
                Reason.WRONG_ROLES,
                "a ends with a message by the user; expected assistant",
            ),
            (None, Reason.WRONG_TYPE, "a is null; expected text"),
        ],
    )
    def test_what_is_no_answer(self, value: Any, reason: Reason, detail: str) -> None:
        fails(reason, detail, check_answer, value, "a")


class TestSplitConversations:
    NAMES = ("chosen", "rejected")

    def test_the_prompt_is_what_all_share_up_to_the_last_question(self) -> None:
        shared = [say("system"), say("user", "1"), say("assistant", "2"), say("user", "3")]
        prompt, answers = split_conversations(
            [[*shared, say("assistant", "a")], [*shared, say("assistant", "b")], [*shared, say("assistant", "c")]],
            ("a", "b", "c"),
        )
        assert prompt == shared
        assert answers == [[say("assistant", text)] for text in "abc"]

    def test_a_shared_beginning_of_the_answers_stays_in_the_answers(self) -> None:
        one = [say("user"), say("assistant", "same"), say("assistant", "1")]
        two = [say("user"), say("assistant", "same"), say("assistant", "2")]
        assert split_conversations([one, two], self.NAMES) == ([say("user")], [one[1:], two[1:]])

    def test_one_side_may_be_the_beginning_of_the_other(self) -> None:
        short = [say("user"), say("assistant")]
        long = [*short, say("user"), say("assistant")]
        assert split_conversations([short, long], self.NAMES) == ([say("user")], [short[1:], long[1:]])

    def test_conversations_that_part_early_give_answers_of_several_messages(self) -> None:
        one = [say("user", "a"), say("assistant", "x"), say("user", "c"), say("assistant", "good")]
        two = [say("user", "a"), say("assistant", "y"), say("user", "d"), say("assistant", "bad")]
        assert split_conversations([one, two], self.NAMES) == ([say("user", "a")], [one[1:], two[1:]])

    def test_a_tool_may_ask(self) -> None:
        shared = [say("user"), say("assistant", "call"), say("tool")]
        prompt, _ = split_conversations([[*shared, say("assistant", t)] for t in "ab"], self.NAMES)
        assert prompt == shared

    @pytest.mark.parametrize(
        ("one", "two", "reason", "detail"),
        [
            (["user", "user"], ["user", "assistant"], Reason.WRONG_ROLES, "chosen ends with a message by the user; "),
            ([], ["user", "assistant"], Reason.NO_PROMPT, "chosen holds no messages"),
            (["assistant"], ["assistant"], Reason.NO_PROMPT, "chosen and rejected share no message by the user before"),
            (["system", "assistant"], ["user", "assistant"], Reason.NO_PROMPT, "chosen and rejected share no message"),
        ],
    )
    def test_what_cannot_be_split(self, one: list[str], two: list[str], reason: Reason, detail: str) -> None:
        with pytest.raises(RowError) as caught:
            split_conversations([[say(role) for role in one], [say(role) for role in two]], self.NAMES)
        assert caught.value.reason is reason
        assert caught.value.detail.startswith(detail)

    def test_sides_that_go_on_with_another_question(self) -> None:
        fails(
            Reason.WRONG_ROLES,
            "rejected[1] is by the user where the shared prompt ends; expected assistant",
            split_conversations,
            [[say("user"), say("assistant")], [say("user"), say("user", "y"), say("assistant")]],
            self.NAMES,
        )

    @settings(deadline=None)
    @given(st.data())
    def test_nothing_is_lost_and_nothing_is_shared_twice(self, data: st.DataObject) -> None:
        """Prompt + answer is each conversation again; the prompt ends with a question; no later question is shared."""
        turns = st.tuples(st.sampled_from("uat"), st.sampled_from("xy")).map(
            lambda turn: say({"u": "user", "a": "assistant", "t": "tool"}[turn[0]], turn[1])
        )
        conversations = [
            [say("user"), *data.draw(st.lists(turns, max_size=5)), say("assistant", data.draw(st.sampled_from("xy")))]
            for _ in range(data.draw(st.integers(2, 4)))
        ]
        names = [str(index) for index in range(len(conversations))]
        try:
            prompt, answers = split_conversations(conversations, names)
        except RowError as error:
            # The first message is always shared and a question, so this is the only way to fail.
            assert error.reason is Reason.WRONG_ROLES  # noqa: PT017
            return
        assert [prompt + answer for answer in answers] == conversations
        assert prompt[-1]["role"] in ("user", "tool")
        for same_place in zip(*answers, strict=False):
            if any(message != same_place[0] for message in same_place):
                break
            assert same_place[0]["role"] == "assistant"


class TestGroupOf:
    NAMES = ("chosen", "rejected")

    def answers(self, *texts: str) -> list[list[Message]]:
        return [[say("assistant", text)] for text in texts]

    def test_a_group(self) -> None:
        group = group_of([say("user")], self.answers("a", "b"), self.NAMES, ratings=(2.0, 1.0), meta={"id": 1})
        assert group.responses == ([say("assistant", "a")], [say("assistant", "b")])
        assert group.ratings == (2.0, 1.0)
        assert group.meta == {"id": 1}

    def test_a_blank_prompt(self) -> None:
        fails(Reason.NO_PROMPT, "the prompt is blank", group_of, [say("user", " ")], self.answers("a", "b"), self.NAMES)
        assert group_of("", ["a", "b"], self.NAMES).prompt == ""

    def test_blank_answers(self) -> None:
        fails(Reason.EMPTY, "rejected is blank", group_of, [say("user")], self.answers("a", "\n "), self.NAMES)
        fails(Reason.EMPTY, "chosen is blank", group_of, "p", ["", "b"], self.NAMES)
        assert group_of("p", ["", "b"], self.NAMES, empty="keep").responses == ("", "b")

    def test_only_the_last_message_of_an_answer_must_say_something(self) -> None:
        several = [say("assistant", ""), say("tool", ""), say("assistant", "a")]
        assert group_of([say("user")], [several, [say("assistant", "b")]], self.NAMES).responses[0] == several
        fails(
            Reason.EMPTY, "chosen is blank", group_of, [say("user")], [several[::-1], self.answers("b")[0]], self.NAMES
        )

    def test_a_tool_call_without_text_says_something(self) -> None:
        call = [{**say("assistant", ""), "tool_calls": [{"id": 1}]}]
        assert group_of([say("user")], [call, *self.answers("b")], self.NAMES).responses[0] == call

    def test_identical_answers(self) -> None:
        fails(Reason.IDENTICAL, "chosen and rejected are the same", group_of, "p", ["a", "a"], self.NAMES)
        fails(
            Reason.IDENTICAL,
            "2 and 3 are the same",
            group_of,
            [say("user")],
            self.answers("a", "b", "b"),
            ("1", "2", "3"),
        )
        fails(Reason.IDENTICAL, "chosen and rejected are the same", group_of, "p", ["", ""], self.NAMES, empty="keep")

    def test_ties(self) -> None:
        fails(Reason.TIE, "all answers are rated 3", group_of, "p", ["a", "b"], self.NAMES, ratings=(3.0, 3.0))
        some = group_of("p", ["a", "b", "c"], ("1", "2", "3"), ratings=(3.0, 3.0, 1.0))
        assert some.ratings == (3.0, 3.0, 1.0)

    def test_ties_on_demand(self) -> None:
        group = group_of("p", ["a", "b"], self.NAMES, ratings=(3.0, 3.0), ties="keep")
        assert group.ratings == (3.0, 3.0)
        with pytest.raises(ConfigError, match="ties='half'; expected one of 'drop', 'keep'"):
            group_of("p", ["a", "b"], self.NAMES, ties="half")

    def test_one_answer_is_no_tie(self) -> None:
        assert group_of("p", ["a"], ["answer"], ratings=[1.0]).ratings == (1.0,)

    def test_attributes(self) -> None:
        group = group_of("p", ["a", "b"], self.NAMES, attributes={"length": [1.0, 2.0]})
        assert group.attributes == {"length": (1.0, 2.0)}

    @pytest.mark.parametrize(
        ("answers", "ratings", "reason"),
        [
            (["", "b"], None, Reason.EMPTY),
            (["a", "a"], None, Reason.IDENTICAL),
            (["a", "b"], (1.0, 1.0), Reason.TIE),
        ],
    )
    def test_a_dropped_row_can_be_scored(self, answers: Any, ratings: Any, reason: Reason) -> None:
        with pytest.raises(RowError) as caught:
            group_of("p", answers, self.NAMES, ratings=ratings, meta={"id": 1})
        assert caught.value.reason is reason
        assert caught.value.group == Group("p", tuple(answers), ratings, {"id": 1})

    def test_a_bad_row_cannot(self) -> None:
        with pytest.raises(RowError) as caught:
            group_of([say("user", "")], self.answers("a", "b"), self.NAMES)
        assert caught.value.group is None

    def test_ratings_against_the_order(self) -> None:
        fails(
            Reason.BAD_LABEL,
            "the rating of rejected (2) is above the rating of chosen (1), against the order of the answers",
            group_of,
            "p",
            ["a", "b"],
            self.NAMES,
            ratings=(1.0, 2.0),
        )

    def test_a_wrong_option(self) -> None:
        with pytest.raises(ConfigError, match="empty='skip'"):
            group_of("p", ["a", "b"], self.NAMES, empty="skip")


class TestRankedGroup:
    NAMES = ("one", "two", "three")

    def test_the_best_comes_first_and_ratings_are_left_out(self) -> None:
        group = ranked_group("p", ["a", "b", "c"], self.NAMES, [1.0, 3.0, 2.0], attributes={"x": [10, 30, 20]})
        assert group == Group("p", ("b", "c", "a"), None, {}, {"x": (30, 20, 10)}, (1, 2, 0))
        assert group.in_row_order(["b", "c", "a"]) == ["a", "b", "c"]

    def test_ratings_on_demand(self) -> None:
        assert ranked_group("p", ["a", "b"], "12", [1.0, 3.0], ratings=True).ratings == (3.0, 1.0)

    def test_equal_values_keep_their_order_and_show(self) -> None:
        group = ranked_group("p", ["a", "b", "c"], self.NAMES, [2.0, 2.0, 5.0])
        assert (group.responses, group.ratings, group.row_order) == (("c", "a", "b"), (5.0, 2.0, 2.0), (2, 0, 1))

    def test_ties_of_all(self) -> None:
        fails(Reason.TIE, "all answers are rated 2", ranked_group, "p", ["a", "b"], "12", [2.0, 2.0])
        group = ranked_group("p", ["a", "b"], "12", [2.0, 2.0], ties="keep")
        assert (group.responses, group.ratings, group.row_order) == (("a", "b"), (2.0, 2.0), None)

    def test_names_follow_their_answers(self) -> None:
        fails(Reason.EMPTY, "two is blank", ranked_group, "p", ["a", " ", "c"], self.NAMES, [1.0, 3.0, 2.0])

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    def test_the_order_of_the_row_comes_back(self, values: list[int]) -> None:
        answers = [str(index) for index in range(len(values))]
        group = ranked_group("p", answers, answers, values, ties="keep")
        assert group.in_row_order(group.responses) == answers
        ranked = [values[int(answer)] for answer in group.responses]  # type: ignore[arg-type]
        assert ranked == sorted(values, reverse=True)


def test_places_must_fit_the_responses() -> None:
    with pytest.raises(ValueError, match="2 responses but 1 places in the row"):
        Group("p", ("a", "b"), row_order=(0,))


@pytest.mark.parametrize(("text", "blank"), [("", True), (" \n\t\u3000", True), ("a", False), (" .", False)])
def test_blank(text: str, blank: bool) -> None:
    assert is_blank(text) is blank
