"""Where the assistant's turns lie in a rendered conversation, and which tokens they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.targets import in_spans, outside, target_turns, turn_spans, unlearnt_turns
from xrlhf.structures import Message

Template = Callable[[list[Message], bool], str]

TALK: list[Message] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]


def plain(messages: list[Message], asks: bool) -> str:
    return "".join(f"[{m['role'][0]}]{m['content']};" for m in messages) + ("[a]" if asks else "")


def opens_a_thought(messages: list[Message], asks: bool) -> str:
    """The header that asks has more than an answer that is given."""
    return plain(messages, False) + ("[a]<think>" if asks else "")


def thinks_last(messages: list[Message], asks: bool) -> str:
    """An empty thought stands before the content of the last turn only."""
    text = ""
    for number, m in enumerate(messages):
        thought = "<no thought>" if m["role"] == "assistant" and number == len(messages) - 1 else ""
        text += f"[{m['role'][0]}]{thought}{m['content']};"
    return text + ("[a]" if asks else "")


def counts(messages: list[Message], asks: bool) -> str:
    """What stands first depends on how many messages follow."""
    return f"{len(messages)}:" + plain(messages, asks)


def spans_of(template: Template, turns: list[int], talk: list[Message] = TALK) -> list[str] | RowError:
    text = template(talk, False)
    found = turn_spans(talk, text, turns, lambda number, asks: template(talk[:number], asks))
    return found if isinstance(found, RowError) else [text[start:stop] for start, stop in found]


@pytest.mark.parametrize(
    ("rule", "prompt_length", "turns"),
    [("answer", 3, [3]), ("answer", 1, [1, 3]), ("assistant", 3, [1, 3]), ("all", 3, [1, 3]), ("answer", 4, [])],
)
def test_turns(rule: str, prompt_length: int, turns: list[int]) -> None:
    assert target_turns(TALK, prompt_length, rule) == turns  # type: ignore[arg-type]


def test_turns_that_are_marked_as_not_to_be_learnt() -> None:
    marked = [TALK[0], {**TALK[1], "loss_weight": 0.0}, {**TALK[2], "loss_weight": 0.0}, {**TALK[3], "loss_weight": 1}]
    assert target_turns(marked, 3, "assistant") == [3]
    assert target_turns(marked, 0, "answer") == [3]
    assert unlearnt_turns(marked) == [1]
    assert unlearnt_turns(TALK) == []
    assert target_turns([TALK[0], {**TALK[1], "loss_weight": False}], 1, "answer") == []


@pytest.mark.parametrize("mark", [0.5, "0", float("nan"), [0]])
def test_a_mark_that_says_neither(mark: object) -> None:
    found = unlearnt_turns([TALK[0], {**TALK[1], "loss_weight": mark}])
    assert isinstance(found, RowError)
    assert found.reason is Reason.BAD_LABEL
    assert found.detail.startswith("message 2 has the loss weight ")


def test_what_lies_outside_of_spans() -> None:
    assert outside([], 5) == [(0, 5)]
    assert outside([(1, 3)], 5) == [(0, 1), (3, 5)]
    assert outside([(0, 2), (2, 4)], 4) == []


def test_a_turn_goes_from_behind_its_header_to_the_end_of_its_closing() -> None:
    assert spans_of(plain, [1, 3]) == ["Hello;", "See you;"]
    assert spans_of(plain, [3]) == ["See you;"]


def test_a_header_that_writes_more_than_an_answer_has() -> None:
    """The header and the answer part behind "[", since "a]<think>" and "a]Hello" agree as far as "a]"."""
    assert spans_of(opens_a_thought, [1, 3]) == ["Hello;", "See you;"]


def test_a_last_turn_that_is_written_otherwise() -> None:
    assert spans_of(thinks_last, [1, 3]) == ["Hello;", "<no thought>See you;"]


def test_content_that_a_template_strips() -> None:
    def strips(messages: list[Message], asks: bool) -> str:
        return thinks_last([{**m, "content": str(m["content"]).strip()} for m in messages], asks)

    talk = [TALK[0], {"role": "assistant", "content": " Hello\n"}, *TALK[2:]]
    assert spans_of(strips, [1], talk) == ["Hello;"]


def test_a_template_that_changes_what_stands_before() -> None:
    found = spans_of(counts, [3])
    assert isinstance(found, RowError)
    assert found.reason is Reason.TEMPLATE
    assert "message 4" in found.detail


def test_a_turn_without_content_that_is_written_otherwise() -> None:
    talk = [TALK[0], {"role": "assistant", "content": "", "tool_calls": [{}]}, *TALK[2:]]
    found = spans_of(thinks_last, [1], talk)
    assert isinstance(found, RowError)
    assert found.reason is Reason.TEMPLATE


def test_tokens_that_hold_a_character_of_a_span() -> None:
    """Tokens: a BOS without characters, "ab", "c d" over the border, "e", "f"; the span is "de"."""
    offsets = np.array([[0, 0], [0, 2], [2, 5], [5, 6], [6, 7]])
    assert in_spans(offsets, [(4, 6)]).tolist() == [False, False, True, True, False]
    assert in_spans(offsets, []).tolist() == [False] * 5
    assert in_spans(offsets, [(0, 2), (6, 7)]).tolist() == [False, True, False, False, True]
