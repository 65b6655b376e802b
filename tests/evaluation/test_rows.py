from __future__ import annotations

from typing import Any

import pytest

from xrlhf.data.reasons import Reason, RowError
from xrlhf.evaluation.rows import LAYOUTS, is_single, responses_of, scorable_group
from xrlhf.structures import Group

ASK = {"role": "user", "content": "Q"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
PAIR = "\n\nHuman: Q\n\nAssistant: {}"

ROWS: dict[str, list[tuple[dict[str, Any], Group]]] = {
    "messages": [
        ({"messages": [ASK, GOOD]}, Group([ASK], ([GOOD],))),
        ({"messages": [ASK, BAD, ASK, GOOD]}, Group([ASK, BAD, ASK], ([GOOD],))),
    ],
    "text": [({"text": "as it is"}, Group("", ("as it is",)))],
    "prompt + response": [
        ({"prompt": "Q", "response": "good"}, Group([ASK], ([GOOD],))),
        ({"prompt": [ASK], "response": [GOOD]}, Group([ASK], ([GOOD],))),
    ],
    "prompt + responses": [
        ({"prompt": "Q", "responses": ["good", "bad"]}, Group([ASK], ([GOOD], [BAD]))),
        ({"prompt": "Q", "responses": ["good"]}, Group([ASK], ([GOOD],))),
        ({"prompt": [ASK], "responses": [[GOOD], BAD, "good"]}, Group([ASK], ([GOOD], [BAD], [GOOD]))),
    ],
    "prompt + chosen + rejected": [
        ({"prompt": "Q", "chosen": "good", "rejected": "bad"}, Group([ASK], ([GOOD], [BAD]))),
        ({"prompt": "Q", "chosen": "bad", "rejected": "bad"}, Group([ASK], ([BAD], [BAD]))),
        # Whole conversations beside a prompt, as UltraFeedback has them.
        ({"prompt": "Q", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, Group([ASK], ([GOOD], [BAD]))),
    ],
    "chosen + rejected": [
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, Group([ASK], ([GOOD], [BAD]))),
        ({"chosen": PAIR.format("good"), "rejected": PAIR.format("bad")}, Group([ASK], ([GOOD], [BAD]))),
        # Answers that training drops: equal ones, blank ones.
        ({"chosen": PAIR.format("bad"), "rejected": PAIR.format("bad")}, Group([ASK], ([BAD], [BAD]))),
        (
            {"chosen": PAIR.format(""), "rejected": PAIR.format("bad")},
            Group([ASK], ([{"role": "assistant", "content": ""}], [BAD])),
        ),
    ],
}
CASES = [(layout, row, group) for layout, cases in ROWS.items() for row, group in cases]


def test_every_layout_has_a_case() -> None:
    assert set(ROWS) == set(LAYOUTS)


@pytest.mark.parametrize(("layout", "row", "group"), CASES)
def test_layouts(layout: str, row: dict[str, Any], group: Group) -> None:
    assert scorable_group(row) == group
    assert is_single(row) == (layout in ("messages", "text", "prompt + response"))


@pytest.mark.parametrize(("layout", "row", "group"), CASES)
def test_other_columns_and_nulls_do_not_matter(layout: str, row: dict[str, Any], group: Group) -> None:
    """Arrow files have every column in every row; nulls fill those that a row had not."""
    empty = dict.fromkeys(["messages", "text", "prompt", "response", "responses", "chosen", "rejected"])
    filled = {**empty, **row, "id": 7, "score": 0.5}
    assert scorable_group(filled) == group
    assert is_single(filled) == is_single(row)


@pytest.mark.parametrize(
    ("row", "single", "responses"),
    [
        # UltraFeedback has its chosen conversation a second time under "messages".
        ({"prompt": "Q", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "messages": [ASK, GOOD]}, False, 2),
        ({"messages": [ASK, GOOD], "chosen": "good"}, True, 1),
        ({"prompt": "Q", "response": "good", "chosen": "other"}, True, 1),
        ({"prompt": "Q", "response": "good", "responses": ["good", "bad"]}, False, 2),
        ({"text": "as it is", "responses": ["good", "bad"]}, True, 1),
    ],
)
def test_rows_that_fit_several_layouts(row: dict[str, Any], single: bool, responses: int) -> None:
    """What is scored and what is written, ``score`` or ``scores``, always agree."""
    assert is_single(row) == single
    assert len(scorable_group(row).responses) == responses


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({}, Reason.MISSING_COLUMN, r"found nothing; expected one of: prompt \+ chosen \+ rejected; "),
        ({"question": "Q", "answer": "A"}, Reason.MISSING_COLUMN, "found question, answer; expected one of"),
        ({"prompt": "Q"}, Reason.MISSING_COLUMN, "found prompt; expected"),
        ({"prompt": "Q", "chosen": "good"}, Reason.MISSING_COLUMN, "found prompt, chosen; expected"),
        ({"messages": None}, Reason.MISSING_COLUMN, "found messages; expected"),
        ({"messages": "hello"}, Reason.WRONG_TYPE, "messages is text; expected a list of messages"),
        ({"messages": []}, Reason.WRONG_ROLES, "messages does not end with an assistant message"),
        ({"messages": [ASK]}, Reason.WRONG_ROLES, "messages does not end with an assistant message"),
        ({"messages": [ASK, {"role": "bot", "content": ""}]}, Reason.WRONG_ROLES, r"messages\[1\] has the role 'bot'"),
        ({"text": ["a"]}, Reason.WRONG_TYPE, "text is list; expected text"),
        ({"text": "  \n"}, Reason.EMPTY, "text is blank"),
        ({"prompt": {"a": 1}, "response": "x"}, Reason.WRONG_TYPE, r"prompt\[0\] has 'a'; expected a message"),
        ({"prompt": "Q", "response": {"x": 1}}, Reason.WRONG_TYPE, r"response\[0\] has 'x'; expected a message"),
        ({"prompt": [ASK], "response": [ASK]}, Reason.WRONG_ROLES, "response begins with a message by the user"),
        ({"prompt": [ASK, GOOD], "response": "x"}, Reason.WRONG_ROLES, "prompt ends with a message by the assistant"),
        ({"prompt": "Q", "responses": "good"}, Reason.WRONG_TYPE, "responses is text; expected a list of answers"),
        ({"prompt": "Q", "responses": []}, Reason.WRONG_TYPE, "responses is an empty list; expected a list of answers"),
        ({"prompt": "Q", "responses": ["a", [1]]}, Reason.WRONG_TYPE, r"responses\[1\]\[0\] is number"),
        ({"prompt": "Q", "chosen": "a", "rejected": [ASK]}, Reason.WRONG_ROLES, "rejected begins with a message by"),
        ({"chosen": "just text", "rejected": "more"}, Reason.WRONG_ROLES, r"chosen does not begin with '\\n\\nHuman:'"),
        ({"chosen": [ASK, GOOD], "rejected": "more"}, Reason.WRONG_TYPE, "rejected is text; expected a list"),
        (
            {"chosen": [ASK, GOOD], "rejected": [{"role": "user", "content": "other"}, BAD]},
            Reason.NO_PROMPT,
            "chosen and rejected share no message by the user before they differ",
        ),
    ],
)
def test_rows_that_cannot_be_scored(row: dict[str, Any], reason: Reason, detail: str) -> None:
    with pytest.raises(RowError, match=detail) as caught:
        scorable_group(row)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("row", "responses"),
    [
        ({"messages": [ASK, GOOD]}, [[ASK, GOOD]]),
        ({"text": "as it is"}, ["as it is"]),
        ({"prompt": "Q", "response": [GOOD]}, [[GOOD]]),
        ({"prompt": "Q", "responses": ["good", BAD]}, ["good", BAD]),
        ({"prompt": "Q", "chosen": "good", "rejected": "bad"}, ["good", "bad"]),
        ({"chosen": PAIR, "rejected": PAIR}, [PAIR, PAIR]),
    ],
)
def test_responses_as_the_row_has_them(row: dict[str, Any], responses: list[Any]) -> None:
    assert responses_of(row) == responses
