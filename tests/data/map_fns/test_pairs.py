"""The general layouts: pairs, plain text, whole conversations, ranked lists."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xrlhf.data.map_fns import (
    conversation_pair_map_fn,
    hh_map_fn,
    pair_map_fn,
    ranked_map_fn,
    text_pair_map_fn,
)
from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources import open_source
from xrlhf.errors import ConfigError
from xrlhf.structures import Message

RowsOf = Callable[[str], list[dict[str, Any]]]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def bot(text: str) -> Message:
    return {"role": "assistant", "content": text}


def fails(reason: Reason, detail: str, function: Any, row: dict[str, Any], **options: Any) -> None:
    with pytest.raises(RowError) as caught:
        function(row, **options)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


class TestPair:
    ROW: dict[str, Any] = {"prompt": "q", "chosen": "a", "rejected": "b"}  # noqa: RUF012

    @pytest.mark.parametrize("prompt", ["q", user("q"), [user("q")]])
    @pytest.mark.parametrize("answer", [lambda text: text, bot, lambda text: [bot(text)]])
    def test_ways_to_write_a_pair(self, prompt: Any, answer: Callable[[str], Any]) -> None:
        group = pair_map_fn({"prompt": prompt, "chosen": answer("a"), "rejected": answer("b")})
        assert group.prompt == [user("q")]
        assert group.responses == ([bot("a")], [bot("b")])
        assert group.ratings is None

    def test_other_column_names(self) -> None:
        group = pair_map_fn(
            {"question": "q", "answer 1": "a", "answer-2": "b", "prompt": None},
            prompt_column="question",
            chosen_column="answer 1",
            rejected_column="answer-2",
        )
        assert (group.prompt, group.responses) == ([user("q")], ([bot("a")], [bot("b")]))

    def test_a_system_column(self) -> None:
        with_system = {**self.ROW, "system": "s"}
        assert pair_map_fn(with_system).prompt == [user("q")]
        assert pair_map_fn(with_system, system_column="system").prompt == [
            {"role": "system", "content": "s"},
            user("q"),
        ]
        assert pair_map_fn({**self.ROW, "system": " "}, system_column="system").prompt == [user("q")]
        fails(
            Reason.WRONG_ROLES,
            "system holds a system text, and prompt begins with another",
            pair_map_fn,
            {**with_system, "prompt": [{"role": "system", "content": "t"}, user("q")]},
            system_column="system",
        )
        fails(
            Reason.MISSING_COLUMN,
            "column 'system' is missing; the row has 'prompt', 'chosen', 'rejected'",
            pair_map_fn,
            self.ROW,
            system_column="system",
        )

    def test_a_margin_rates_the_chosen_answer_over_zero(self) -> None:
        assert pair_map_fn({**self.ROW, "margin": 2}).ratings == (2.0, 0.0)
        assert pair_map_fn({**self.ROW, "gap": 0.5}, margin_column="gap").ratings == (0.5, 0.0)
        assert pair_map_fn({**self.ROW, "margin": None}).ratings is None
        assert pair_map_fn({**self.ROW, "margin": 2}, margin_column=None).ratings is None

    def test_margins_that_say_something_else(self) -> None:
        fails(Reason.TIE, "all answers are rated 0", pair_map_fn, {**self.ROW, "margin": 0})
        fails(Reason.BAD_LABEL, "margin is -1; expected 0 or more", pair_map_fn, {**self.ROW, "margin": -1})
        fails(Reason.BAD_LABEL, "margin is '1'; expected a finite number", pair_map_fn, {**self.ROW, "margin": "1"})

    def test_ties_on_demand(self) -> None:
        assert pair_map_fn({**self.ROW, "margin": 0}, ties="keep").ratings == (0.0, 0.0)
        row = {**self.ROW, "good": 2, "poor": 2}
        assert pair_map_fn(row, score_columns=("good", "poor"), ties="keep").ratings == (2.0, 2.0)
        assert text_pair_map_fn({**self.ROW, "margin": 0}, ties="keep").ratings == (0.0, 0.0)
        ranked = {"prompt": "q", "responses": ["a", "b"], "ratings": [1, 1]}
        assert ranked_map_fn(ranked, ties="keep").ratings == (1.0, 1.0)
        talks = {"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")], "margin": 0}
        assert conversation_pair_map_fn(talks, ties="keep").ratings == (0.0, 0.0)

    def test_scores_take_the_place_of_the_margin(self) -> None:
        row = {**self.ROW, "margin": 9, "good": 4, "poor": 1.5}
        assert pair_map_fn(row, score_columns=("good", "poor")).ratings == (4.0, 1.5)
        fails(
            Reason.MISSING_COLUMN,
            "column 'good' is missing; the row has 'prompt', 'chosen', 'rejected'",
            pair_map_fn,
            self.ROW,
            score_columns=("good", "poor"),
        )
        fails(
            Reason.BAD_LABEL,
            "poor (5) is above good (4), against the order of the answers",
            pair_map_fn,
            {**row, "poor": 5},
            score_columns=("good", "poor"),
        )

    @pytest.mark.parametrize(
        ("change", "reason", "detail"),
        [
            ({"prompt": None}, Reason.WRONG_TYPE, "prompt is null; expected text"),
            ({"prompt": ""}, Reason.NO_PROMPT, "the prompt is blank"),
            ({"prompt": []}, Reason.NO_PROMPT, "prompt holds no messages"),
            (
                {"prompt": [user("q"), bot("a")]},
                Reason.WRONG_ROLES,
                "prompt ends with a message by the assistant; expected user or tool",
            ),
            ({"rejected": None}, Reason.WRONG_TYPE, "rejected is null; expected text"),
            ({"rejected": " "}, Reason.EMPTY, "rejected is blank"),
            ({"rejected": []}, Reason.EMPTY, "rejected holds no messages"),
            ({"rejected": [bot("a")]}, Reason.IDENTICAL, "chosen and rejected are the same"),
            (
                {"rejected": {"from": "gpt", "value": "b"}},
                Reason.WRONG_TYPE,
                "rejected[0] has 'from', 'value'; expected a message with 'role' and 'content'",
            ),
            (
                {"chosen": [user("q"), bot("a")]},
                Reason.WRONG_ROLES,
                "chosen begins with a message by the user; expected assistant (where the answers hold whole "
                "conversations, use conversation_pair_map_fn)",
            ),
        ],
    )
    def test_rows_that_cannot_be_used(self, change: dict[str, Any], reason: Reason, detail: str) -> None:
        fails(reason, detail, pair_map_fn, {**self.ROW, **change})

    def test_blank_answers_on_demand(self) -> None:
        assert pair_map_fn({**self.ROW, "rejected": ""}, empty="keep").responses[1] == [bot("")]

    def test_the_row_is_left_alone_and_its_columns_passed_on(self) -> None:
        row = {
            "prompt": [user("q")],
            "chosen": [bot("a")],
            "rejected": [bot("b")],
            "id": 1,
            "tools": "[]",
            "reference": [bot("r")],
            "system": "s",
        }
        before = copy.deepcopy(row)
        group = pair_map_fn(row, system_column="system")
        assert group.meta == {"id": 1, "tools": "[]", "reference": [bot("r")]}
        assert row == before

    def test_xtuner_polar_and_reward_bench_rows(self, rows_of: RowsOf) -> None:
        (xtuner,) = rows_of("xtuner_preference")
        assert pair_map_fn(xtuner).prompt == xtuner["prompt"]
        assert pair_map_fn(xtuner).responses == ([bot("good")], [bot("bad")])
        (polar,) = rows_of("polar_reference")
        assert pair_map_fn(polar).meta["reference"] == [bot("Beijing.")]
        (bench,) = rows_of("reward_bench")
        group = pair_map_fn(bench)
        assert (group.prompt, group.responses) == ([user("2+2?")], ([bot("4")], [bot("5")]))
        assert group.meta == {"id": 7, "subset": "math-prm"}

    def test_stack_exchange_rows(self, shared_data: Path) -> None:
        """25 rows over 8 questions; j is the better answer."""
        rows = list(open_source(shared_data / "torchtune-assets" / "stack_exchange_paired_tiny.json").rows())
        names = {"prompt_column": "question", "chosen_column": "response_j", "rejected_column": "response_k"}
        groups = [pair_map_fn(row.value, **names) for row in rows]  # type: ignore[arg-type]
        assert len(groups) == 25
        assert len({group.prompt[0]["content"] for group in groups}) == 8  # type: ignore[index]
        assert groups[0].responses[0] == [bot(rows[0].value["response_j"])]  # type: ignore[index]


class TestTextPair:
    def test_with_a_prompt(self) -> None:
        group = text_pair_map_fn({"prompt": "The sky is", "chosen": " blue.", "rejected": " green.\n"})
        assert (group.prompt, group.responses) == ("The sky is", (" blue.", " green.\n"))
        assert group.is_text
        assert group.conversations() == ["The sky is blue.", "The sky is green.\n"]

    def test_whole_texts(self) -> None:
        row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
        assert text_pair_map_fn(row).prompt == ""
        assert text_pair_map_fn({**row, "prompt": "unused"}, prompt_column=None).prompt == ""

    def test_margin_and_names(self) -> None:
        group = text_pair_map_fn(
            {"good": "a", "bad": "b", "gap": 1}, chosen_column="good", rejected_column="bad", margin_column="gap"
        )
        assert (group.responses, group.ratings) == (("a", "b"), (1.0, 0.0))

    @pytest.mark.parametrize(
        ("row", "reason", "detail"),
        [
            ({"chosen": "a"}, Reason.MISSING_COLUMN, "column 'rejected' is missing; the row has 'chosen'"),
            ({"prompt": None, "chosen": "a", "rejected": "b"}, Reason.WRONG_TYPE, "prompt is null; expected text"),
            (
                {"prompt": "p", "chosen": [bot("a")], "rejected": "b"},
                Reason.WRONG_TYPE,
                "chosen is list; expected text",
            ),
            ({"chosen": "a", "rejected": "a"}, Reason.IDENTICAL, "chosen and rejected are the same"),
            ({"chosen": "", "rejected": "a"}, Reason.EMPTY, "chosen is blank"),
            ({"chosen": "a", "rejected": "b", "margin": -2}, Reason.BAD_LABEL, "margin is -2; expected 0 or more"),
            ({"chosen": "a", "rejected": "b", "margin": 0}, Reason.TIE, "all answers are rated 0"),
        ],
    )
    def test_rows_that_cannot_be_used(self, row: dict[str, Any], reason: Reason, detail: str) -> None:
        fails(reason, detail, text_pair_map_fn, row)

    def test_schema_rows(self, rows_of: RowsOf) -> None:
        (explicit,) = rows_of("trl_standard_explicit")
        assert text_pair_map_fn(explicit).responses == (" blue.", " green.")
        (implicit,) = rows_of("trl_standard_implicit")
        assert text_pair_map_fn(implicit).responses == ("The sky is blue.", "The sky is green.")


class TestConversationPair:
    def row(self, **more: Any) -> dict[str, Any]:
        return {"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")], **more}

    def test_a_pair(self) -> None:
        group = conversation_pair_map_fn(self.row(prompt="only the last turn", source="s"))
        assert (group.prompt, group.responses) == ([user("q")], ([bot("a")], [bot("b")]))
        assert group.ratings is None
        assert group.meta == {"source": "s"}

    def test_scores_and_margins(self) -> None:
        assert conversation_pair_map_fn(self.row(chosen_score=3, rejected_score=1.0)).ratings == (3.0, 1.0)
        assert conversation_pair_map_fn(self.row(chosen_score=None, rejected_score=None)).ratings is None
        assert conversation_pair_map_fn(self.row(chosen_score=3, rejected_score=1, margin=9)).ratings == (3.0, 1.0)
        assert conversation_pair_map_fn(self.row(margin=9)).ratings == (9.0, 0.0)
        scored = self.row(chosen_score=3, rejected_score=3)
        assert conversation_pair_map_fn(scored, score_columns=None).ratings is None
        renamed = conversation_pair_map_fn(self.row(s1=2, s0=1), score_columns=("s1", "s0"))
        assert renamed.ratings == (2.0, 1.0)

    @pytest.mark.parametrize(
        ("scores", "reason", "detail"),
        [
            ({"chosen_score": 3, "rejected_score": 3}, Reason.TIE, "all answers are rated 3"),
            (
                {"chosen_score": 1, "rejected_score": 2},
                Reason.BAD_LABEL,
                "rejected_score (2) is above chosen_score (1), against the order of the answers",
            ),
            (
                {"chosen_score": 3, "rejected_score": None},
                Reason.BAD_LABEL,
                "rejected_score is null; expected a finite number",
            ),
            (
                {"chosen_score": 3},
                Reason.MISSING_COLUMN,
                "column 'rejected_score' is missing; the row has 'chosen', 'rejected', 'chosen_score'",
            ),
            ({"margin": -1}, Reason.BAD_LABEL, "margin is -1; expected 0 or more"),
        ],
    )
    def test_scores_that_say_something_else(self, scores: dict[str, Any], reason: Reason, detail: str) -> None:
        fails(reason, detail, conversation_pair_map_fn, self.row(**scores))

    @pytest.mark.parametrize(
        ("change", "reason", "detail"),
        [
            (
                {"chosen": "q a"},
                Reason.WRONG_TYPE,
                "chosen is text; expected a list of messages (pair_map_fn and hh_map_fn read texts)",
            ),
            ({"rejected": None}, Reason.WRONG_TYPE, "rejected is null; expected a list of messages"),
            (
                {"rejected": [user("r"), bot("b")]},
                Reason.NO_PROMPT,
                "chosen and rejected share no message by the user before they differ",
            ),
            ({"rejected": [user("q"), bot("a")]}, Reason.IDENTICAL, "chosen and rejected are the same"),
            ({"rejected": [user("q"), bot(" ")]}, Reason.EMPTY, "rejected is blank"),
            (
                {"rejected": [user("q")]},
                Reason.WRONG_ROLES,
                "rejected ends with a message by the user; expected assistant",
            ),
        ],
    )
    def test_rows_that_cannot_be_used(self, change: dict[str, Any], reason: Reason, detail: str) -> None:
        fails(reason, detail, conversation_pair_map_fn, self.row(**change))

    def test_conversations_that_part_early(self, rows_of: RowsOf) -> None:
        scored, early = rows_of("rlhflow_standard")
        assert conversation_pair_map_fn(scored).prompt == [user("a"), bot("b"), user("c")]
        assert conversation_pair_map_fn(scored).ratings == (3.0, 1.0)
        group = conversation_pair_map_fn(early)
        assert group.prompt == [user("a")]
        assert group.responses == ([bot("x"), user("c"), bot("good")], [bot("y"), user("d"), bot("bad")])
        fails(
            Reason.DIFFERENT_TURNS,
            "chosen and rejected part 3 messages before the end; expected 1",
            conversation_pair_map_fn,
            early,
            different_turns="drop",
        )
        assert conversation_pair_map_fn(scored, different_turns="drop").ratings == (3.0, 1.0)
        with pytest.raises(ConfigError, match="different_turns='raise'; expected one of 'keep', 'drop'"):
            conversation_pair_map_fn(early, different_turns="raise")  # type: ignore[arg-type]

    def test_more_schema_rows(self, rows_of: RowsOf) -> None:
        (orpo,) = rows_of("orpo_dpo_mix_40k")
        assert conversation_pair_map_fn(orpo).prompt == [user("a"), bot("b"), user("c")]
        (skywork,) = rows_of("skywork_80k")
        assert conversation_pair_map_fn(skywork).responses == ([bot("Apple.")], [bot("Brick.")])
        assert conversation_pair_map_fn(skywork).meta == {"source": "helpsteer2"}
        (trl,) = rows_of("trl_conversational_implicit")
        assert conversation_pair_map_fn(trl).prompt == [user("q")]

    def test_a_real_row(self, shared_data: Path) -> None:
        (row,) = open_source(shared_data / "torchtune-assets" / "hh_rlhf_tiny.json").rows()
        group = conversation_pair_map_fn(row.value)  # type: ignore[arg-type]
        assert group.prompt == [user("What do I do when I have a hole in my trousers?")]
        assert group.responses == ([bot("Fix the hole.")], [bot("Take them off.")])

    def test_hh_rows_as_conversations_give_the_same_groups(self, shared_data: Path) -> None:
        """What the HH format reads, written as message lists, is the same data."""
        path = shared_data / "hh-rlhf" / "harmless-base.test.jsonl.gz"
        for row in open_source(path).rows():
            group = hh_map_fn(row.value, empty="keep")  # type: ignore[arg-type]
            chosen, rejected = group.conversations()
            assert conversation_pair_map_fn({"chosen": chosen, "rejected": rejected}, empty="keep") == group


class TestRanked:
    def test_the_order_is_the_ranking(self) -> None:
        group = ranked_map_fn({"prompt": "q", "responses": ["a", bot("b"), [bot("c")]], "id": "x"})
        assert group.prompt == [user("q")]
        assert group.responses == ([bot("a")], [bot("b")], [bot("c")])
        assert group.ratings is None
        assert group.meta == {"id": "x"}

    def test_ratings_decide_the_order_and_ties_keep_theirs(self) -> None:
        row = {"prompt": "q", "responses": ["a", "b", "c", "d"], "ratings": [1, 3, 1.0, 4]}
        group = ranked_map_fn(row)
        assert [answer[0]["content"] for answer in group.responses] == ["d", "b", "a", "c"]  # type: ignore[index]
        assert group.ratings == (4.0, 3.0, 1.0, 1.0)
        assert ranked_map_fn(row, ratings_column=None).ratings is None
        assert ranked_map_fn({**row, "ratings": None}).ratings is None

    def test_other_column_names(self) -> None:
        row = {"instruction": "q", "completions": ["a", "b"], "scores": [0, 1]}
        group = ranked_map_fn(row, prompt_column="instruction", responses_column="completions", ratings_column="scores")
        assert group.responses == ([bot("b")], [bot("a")])

    @pytest.mark.parametrize(
        ("change", "reason", "detail"),
        [
            ({"responses": "a"}, Reason.WRONG_TYPE, "responses is text; expected a list of answers"),
            ({"responses": ["a"]}, Reason.BELOW_MINIMUM, "responses holds 1 answers; expected 2 or more"),
            ({"responses": []}, Reason.BELOW_MINIMUM, "responses holds 0 answers; expected 2 or more"),
            ({"responses": ["a", None, "c"]}, Reason.WRONG_TYPE, "responses[1] is null; expected text"),
            ({"responses": ["a", "", "c"]}, Reason.EMPTY, "responses[1] is blank"),
            ({"responses": ["a", "b", "a"]}, Reason.IDENTICAL, "responses[0] and responses[2] are the same"),
            (
                {"responses": ["a", "b", "a"], "ratings": [1, 2, 3]},
                Reason.IDENTICAL,
                "responses[2] and responses[0] are the same",
            ),
            ({"ratings": [1, 2]}, Reason.BAD_LABEL, "ratings holds 2 numbers for 3 answers"),
            ({"ratings": 3}, Reason.WRONG_TYPE, "ratings is number; expected a list of numbers"),
            ({"ratings": [1, "N/A", 2]}, Reason.BAD_LABEL, "ratings[1] is 'N/A'; expected a finite number"),
            ({"ratings": [2, 2, 2]}, Reason.TIE, "all answers are rated 2"),
        ],
    )
    def test_rows_that_cannot_be_used(self, change: dict[str, Any], reason: Reason, detail: str) -> None:
        fails(reason, detail, ranked_map_fn, {"prompt": "q", "responses": ["a", "b", "c"], **change})

    @settings(deadline=None)
    @given(st.lists(st.integers(0, 3), min_size=2, max_size=6).filter(lambda ratings: len(set(ratings)) > 1))
    def test_ratings_never_rise_and_go_with_their_answers(self, ratings: list[int]) -> None:
        responses = [f"{index} {rating}" for index, rating in enumerate(ratings)]
        group = ranked_map_fn({"prompt": "q", "responses": responses, "ratings": ratings})
        assert group.ratings is not None
        assert list(group.ratings) == sorted(ratings, reverse=True)
        for answer, rating in zip(group.responses, group.ratings, strict=True):
            assert answer[0]["content"].split()[1] == f"{rating:.0f}"  # type: ignore[index]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "type", "text"]), inner, max_size=3)
        | st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "bot"]), "content": inner})
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("map_fn", [pair_map_fn, text_pair_map_fn, conversation_pair_map_fn, ranked_map_fn, hh_map_fn])
@settings(deadline=None)
@given(data=st.data())
def test_whatever_a_row_holds_the_outcome_is_a_group_or_a_row_error(map_fn: Any, data: st.DataObject) -> None:
    names = ["prompt", "chosen", "rejected", "margin", "chosen_score", "rejected_score", "responses", "ratings"]
    row = data.draw(st.dictionaries(st.sampled_from(names), json_values))
    before = repr(row)
    try:
        group = map_fn(row)
    except RowError as error:
        assert error.detail  # noqa: PT017
    else:
        assert len(group.responses) >= 2
        json.dumps(group.conversations()).encode()
    assert repr(row) == before
