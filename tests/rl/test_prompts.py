"""Which prompt a row asks, which answer it has, and how the policy reads it."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import byte_tokenizer

from xrlhf.data.map_fns import hh_map_fn, text_pair_map_fn
from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources import RawRow
from xrlhf.errors import ModelError
from xrlhf.rl.prompts import AskedRow, PromptEncoder, read_asked_row
from xrlhf.rl.samples import PromptRow

USER = {"role": "user", "content": "2+2?"}
SYSTEM = {"role": "system", "content": "Be brief."}
FOUR = {"role": "assistant", "content": "4"}


def read(row: Any, **options: Any) -> AskedRow | RowError:
    return read_asked_row(RawRow(3, "rows.jsonl:4", row), **options)


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": "2+2?"}, [USER], None),
        ({"prompt": [SYSTEM, USER]}, [SYSTEM, USER], None),
        ({"prompt": "2+2?", "system": "Be brief."}, [SYSTEM, USER], None),
        ({"prompt": "2+2?", "response": "4"}, [USER], [FOUR]),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, [USER], [FOUR]),
        ({"prompt": "2+2?", "chosen": [USER, FOUR], "rejected": [USER, FOUR]}, [USER], [FOUR]),
        ({"prompt": [USER], "completion": [FOUR]}, [USER], [FOUR]),
        ({"messages": [SYSTEM, USER]}, [SYSTEM, USER], None),
        ({"messages": [SYSTEM, USER, FOUR]}, [SYSTEM, USER], [FOUR]),
        ({"messages": [USER, FOUR, USER, FOUR]}, [USER, FOUR, USER], [FOUR]),
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, [USER], [FOUR]),
        ({"conversations": [USER]}, [USER], None),
        ({"instruction": "2+2?", "output": "4"}, [USER], [FOUR]),
        ({"instruction": "2+2?", "input": "", "system": "Be brief."}, [SYSTEM, USER], None),
        ({"question": "2+2?", "answer": "4"}, [USER], [FOUR]),
        ({"system_prompt": "Be brief.", "question": "2+2?", "response": "4"}, [SYSTEM, USER], [FOUR]),
        ({"text": "The sky is"}, "The sky is", None),
        ({"chosen": [USER, FOUR], "rejected": [USER, {**FOUR, "content": "5"}]}, [USER], [FOUR]),
        (
            {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
            [USER],
            [FOUR],
        ),
    ],
)
def test_layouts(row: dict[str, Any], prompt: Any, answer: Any) -> None:
    found = read({**row, "id": 7, "unused": None})
    assert isinstance(found, AskedRow), found
    assert found.prompt == prompt
    assert found.answer == answer
    assert found.meta["id"] == 7
    assert "unused" not in found.meta


def test_other_columns_are_kept_for_rewards() -> None:
    """The right answer of a word problem, beside what was read as the row's answer."""
    found = read({"question": "2+2?", "answer": "2+2=4\n#### 4", "level": 1})
    assert isinstance(found, AskedRow)
    assert found.meta == {"answer": "2+2=4\n#### 4", "level": 1}


@pytest.mark.parametrize("name", ["prompt", "instruction", "question", "text"])
def test_plain_text(name: str) -> None:
    found = read({name: "The sky is", "response": " blue"}, plain=True)
    assert isinstance(found, AskedRow)
    assert (found.prompt, found.answer) == ("The sky is", " blue")


def test_a_format() -> None:
    """Whatever the map function reads; a row that training would drop has a prompt all the same."""
    same = "\n\nHuman: 2+2?\n\nAssistant: 4"
    found = read({"chosen": same, "rejected": same}, map_fn=hh_map_fn)
    assert isinstance(found, AskedRow)
    assert (found.prompt, found.answer) == ([USER], [FOUR])
    text = read({"prompt": "a", "chosen": "b", "rejected": "c"}, map_fn=text_pair_map_fn)
    assert isinstance(text, AskedRow)
    assert (text.prompt, text.answer) == ("a", "b")


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        (
            {"title": "x", "id": 3},
            Reason.MISSING_COLUMN,
            "found title, id; expected one of: prompt; messages; conversations; instruction; question; text; chosen + "
            "rejected",
        ),
        ({"prompt": "  "}, Reason.NO_PROMPT, "the prompt is blank"),
        ({"text": "\n"}, Reason.NO_PROMPT, "text is blank"),
        ({"prompt": [USER, FOUR]}, Reason.WRONG_ROLES, "prompt ends with a message by the assistant; expected user or"),
        ({"messages": [FOUR]}, Reason.NO_PROMPT, "messages holds no message by the user"),
        ({"messages": "2+2?"}, Reason.WRONG_TYPE, "messages is text; expected a list of messages"),
        ({"question": ["2"]}, Reason.WRONG_TYPE, "question is list; expected text"),
    ],
)
def test_rows_that_ask_nothing(row: dict[str, Any], reason: Reason, detail: str) -> None:
    found = read(row)
    assert isinstance(found, RowError)
    assert found.reason == reason
    assert found.detail.startswith(detail)


def test_a_broken_row_stays_one() -> None:
    broken = RowError(Reason.NOT_JSON, "x")
    assert read(broken) is broken


def test_ids_are_what_the_policy_reads() -> None:
    """Messages through the template, up to where the answer begins; text without the EOS that whole texts end on."""
    tokenizer = byte_tokenizer(adds="<s> $A", bos_token="<s>")
    encoder = PromptEncoder(tokenizer)
    asked = [(5, AskedRow([USER], None, {"answer": "4"})), (9, AskedRow("The sky", None, {}))]
    chat, text = encoder.encode(asked)
    assert isinstance(chat, PromptRow)
    assert isinstance(text, PromptRow)
    assert tokenizer.decode(chat.prompt_ids) == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert (chat.index, chat.prompt, chat.meta) == (5, [USER], {"answer": "4"})
    assert tokenizer.decode(text.prompt_ids) == "<s>The sky"
    assert (text.index, str(text.prompt_ids.dtype)) == (9, "int32")


def test_prompts_that_cannot_be_encoded() -> None:
    encoder = PromptEncoder(byte_tokenizer(), max_length=40)
    rows = [AskedRow([{**USER, "content": "x" * 40}], None, {}), AskedRow("x" * 41, None, {}), AskedRow("x", None, {})]
    long, text, well = encoder.encode(list(enumerate(rows)))
    assert isinstance(long, RowError)
    # A byte a token: 40, "user" and "assistant", three control tokens and three ends of lines.
    assert long.detail == "the prompt takes 59 tokens, the limit is 40"
    assert isinstance(text, RowError)
    assert isinstance(well, PromptRow)
    refused = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    (found,) = PromptEncoder(byte_tokenizer(refused)).encode([(0, AskedRow([SYSTEM, USER], None, {}))])
    assert isinstance(found, RowError)
    assert found.reason == Reason.WRONG_ROLES
    (tools,) = encoder.encode([(0, AskedRow([USER], None, {"tools": "{"}))])
    assert isinstance(tools, RowError)
    with pytest.raises(ModelError, match="has no chat template to ask in"):
        PromptEncoder(byte_tokenizer(None)).encode([(0, rows[0])])
    assert isinstance(PromptEncoder(byte_tokenizer(None)).encode([(0, rows[2])])[0], PromptRow)
