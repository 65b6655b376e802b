"""Conversations and texts to learn from: every layout, every outcome, and the line a row that is left out gets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xrlhf.data import map_fns
from xrlhf.data.dataset import resolve_map_fn
from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.table import map_fn_identity
from xrlhf.errors import ConfigError
from xrlhf.structures import Group, Message

RowsOf = Callable[[str], list[dict[str, Any]]]

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def said(*turns: str) -> list[Message]:
    """Messages from ``"user: text"`` and its like, as the test's tables write them."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


def tagged(*turns: str) -> list[dict[str, str]]:
    return [dict(zip(("from", "value"), turn.split(": ", 1), strict=True)) for turn in turns]


def learn(name: str, row: dict[str, Any], **options: Any) -> Group:
    before = json.dumps(row)
    group: Group = getattr(map_fns, f"{name}_map_fn")(row, **options)
    assert json.dumps(row) == before
    assert len(group.responses) == 1
    assert group.ratings is None
    return group


def fails(reason: Reason, detail: str, name: str, row: dict[str, Any], **options: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        getattr(map_fns, f"{name}_map_fn")(row, **options)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)
    return caught.value


# --------------------------------------------------------------------------------------------- every layout

CHAT = ("user: Hi", "assistant: Hello", "user: 2+2?")
LAYOUTS: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[Message]]] = {
    "messages": ("messages", {"messages": said(*CHAT, "assistant: 4")}, {}, said(*CHAT)),
    "messages, named": ("messages", {"talk": said(*CHAT, "assistant: 4")}, {"messages_column": "talk"}, said(*CHAT)),
    "messages, system inside": (
        "messages",
        {"messages": said("system: s", *CHAT, "assistant: 4")},
        {},
        said("system: s", *CHAT),
    ),
    "messages, system beside": (
        "messages",
        {"messages": said(*CHAT, "assistant: 4"), "sys": "s"},
        {"system_column": "sys"},
        said("system: s", *CHAT),
    ),
    "alpaca": ("alpaca", {"instruction": "2+2?", "input": "", "output": "4"}, {}, said("user: 2+2?")),
    "alpaca, all columns": (
        "alpaca",
        {"instruction": "2", "input": "+2?", "output": "4", "system": "s", "history": [["Hi", "Hello"]]},
        {},
        said("system: s", "user: Hi", "assistant: Hello", "user: 2\n+2?"),
    ),
    "alpaca, named": (
        "alpaca",
        {"task": "2+2?", "answer": "4"},
        {"instruction_column": "task", "output_column": "answer"},
        said("user: 2+2?"),
    ),
    "sharegpt": (
        "sharegpt",
        {"conversations": tagged("human: Hi", "gpt: Hello", "human: 2+2?", "gpt: 4"), "system": "s"},
        {},
        said("system: s", *CHAT),
    ),
    "sharegpt, other tags": (
        "sharegpt",
        {"dialogue": said(*CHAT, "bot: 4")[:1] + said("bot: Hello", "user: 2+2?", "bot: 4")},
        {
            "conversations_column": "dialogue",
            "role_key": "role",
            "content_key": "content",
            "user_tag": "user",
            "assistant_tag": "bot",
        },
        said(*CHAT),
    ),
    "completion": ("completion", {"prompt": "2+2?", "completion": "4"}, {}, said("user: 2+2?")),
    "completion called response": ("completion", {"prompt": "2+2?", "response": "4"}, {}, said("user: 2+2?")),
    "completion of messages": (
        "completion",
        {"prompt": said(*CHAT), "completion": said("assistant: 4"), "sys": "s"},
        {"system_column": "sys"},
        said("system: s", *CHAT),
    ),
    "gsm8k": (
        "completion",
        {"question": "2+2?", "answer": "4"},
        {"prompt_column": "question", "completion_column": "answer"},
        said("user: 2+2?"),
    ),
    "orca": (
        "orca",
        {"system": "s", "question": "2+2?", "chosen": "4", "rejected": "5"},
        {},
        said("system: s", "user: 2+2?"),
    ),
    "orca, blank system": ("orca", {"system": " ", "question": "2+2?", "chosen": "4"}, {}, said("user: 2+2?")),
    "openorca": (
        "orca",
        {"system_prompt": "", "question": "2+2?", "response": "4"},
        {"system_column": "system_prompt", "answer_column": "response"},
        said("user: 2+2?"),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_good_row(name: str) -> None:
    """All messages before the last answer are the prompt; the last answer is the response."""
    function, row, options, prompt = LAYOUTS[name]
    group = learn(function, {**row, "id": 7, "unknown": "x"}, **options)
    assert group.prompt == prompt
    assert group.responses == (said("assistant: 4"),)
    assert group.meta == {"id": 7}


def test_a_text_is_learnt_whole() -> None:
    group = learn("text", {"body": " As it is.\n", "source": "web"}, text_column="body")
    assert (group.prompt, group.responses, group.meta) == ("", (" As it is.\n",), {"source": "web"})


def test_a_continuation_without_roles() -> None:
    group = learn("completion", {"prompt": "The sky is", "completion": " blue."}, roles=False)
    assert (group.prompt, group.responses) == ("The sky is", (" blue.",))


# -------------------------------------------------------------------------------------------------- tools


def test_calls_of_tools_in_messages() -> None:
    """Arguments become an object, the tools are passed on, and a last answer may be a call."""
    given = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": '{"a": 1}'}}
    called = {"role": "assistant", "content": None, "tool_calls": [given, given]}
    results = [{"role": "tool", "content": text, "tool_call_id": "c1"} for text in ("2", "3")]
    row = {"messages": [*said("user: q"), called, *results, *said("assistant: 5")], "tools": [{"name": "add"}]}
    group = learn("messages", row)
    wanted = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **CALL}] * 2}
    assert group.prompt == [*said("user: q"), wanted, *results]
    assert group.meta == {"tools": [{"name": "add"}]}
    group = learn("messages", {"messages": row["messages"][:2], "functions": "[]"}, tools_column="functions")
    assert group.responses == ([wanted],)
    assert group.meta == {"tools": "[]"}


def test_calls_of_tools_in_sharegpt() -> None:
    turns = tagged("human: q", 'function_call: {"name": "add", "arguments": {"a": 1}}', "observation: 2", "gpt: 2")
    group = learn("sharegpt", {"conversations": turns, "tools": "[]"})
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert group.prompt == [*said("user: q"), called, *said("tool: 2")]
    assert group.responses == (said("assistant: 2"),)
    assert group.meta == {"tools": "[]"}
    assert learn("sharegpt", {"conversations": turns[:2]}).responses == ([called],)


def test_a_completion_that_calls_tools_has_one_answer_at_its_end() -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    group = learn("completion", {"prompt": "q", "completion": [called, *said("tool: 2", "assistant: 2")]})
    assert group.prompt == [*said("user: q"), called, *said("tool: 2")]
    assert group.responses == (said("assistant: 2"),)


# ---------------------------------------------------------------------------------- rows that cannot be used

BAD: list[tuple[str, dict[str, Any], Reason, str]] = [
    ("messages", {"text": "x"}, Reason.MISSING_COLUMN, "column 'messages' is missing; the row has 'text'"),
    ("messages", {"messages": "x"}, Reason.WRONG_TYPE, "messages is text; expected a list of messages"),
    (
        "messages",
        {"messages": []},
        Reason.WRONG_ROLES,
        "messages holds no messages; expected an answer by the assistant at its end",
    ),
    (
        "messages",
        {"messages": said("user: q")},
        Reason.WRONG_ROLES,
        "messages holds no message by the assistant; expected an answer by the assistant at its end",
    ),
    (
        "messages",
        {"messages": said("user: q", "assistant: a", "user: thanks")},
        Reason.WRONG_ROLES,
        "messages ends with a message by the user; expected an answer by the assistant at its end",
    ),
    (
        "messages",
        {"messages": said("system: s", "assistant: Hello", "user: q", "assistant: a")},
        Reason.WRONG_ROLES,
        "messages[1] is by the assistant; expected the user to begin",
    ),
    (
        "messages",
        {"messages": said("system:  ", "user: q", "user: r", "assistant: a")},
        Reason.WRONG_ROLES,
        "messages[2] is by the user after a message by the user; expected assistant",
    ),
    (
        "messages",
        {"messages": said("user: q", "assistant: a", "assistant: b")},
        Reason.WRONG_ROLES,
        "messages[2] is by the assistant after a message by the assistant; expected user or tool",
    ),
    (
        "messages",
        {"messages": said("user: q", "tool: 2", "assistant: a")},
        Reason.WRONG_ROLES,
        "messages[1] is by the tool after a message by the user; expected assistant",
    ),
    (
        "messages",
        {"messages": said("user: q", "assistant: a", "tool: 2", "user: r", "assistant: a")},
        Reason.WRONG_ROLES,
        "messages[3] is by the user after a message by the tool; expected assistant or tool",
    ),
    (
        "messages",
        {"messages": said("human: q", "assistant: a")},
        Reason.WRONG_ROLES,
        "messages[0] has the role 'human'; expected one of system, user, assistant, tool",
    ),
    ("messages", {"messages": said("user:  ", "assistant: a")}, Reason.NO_PROMPT, "the prompt is blank"),
    ("alpaca", {"instruction": "q"}, Reason.MISSING_COLUMN, "column 'output' is missing; the row has 'instruction'"),
    ("alpaca", {"instruction": "q", "output": []}, Reason.WRONG_TYPE, "output is list; expected text"),
    (
        "alpaca",
        {"instruction": " ", "output": "a", "history": [["q", "a"]]},
        Reason.NO_PROMPT,
        "instruction is blank",
    ),
    (
        "alpaca",
        {"instruction": "q", "output": "a", "history": [["q"]]},
        Reason.WRONG_TYPE,
        "history[0] is a list of 1; expected [user text, assistant text]",
    ),
    (
        "sharegpt",
        {"conversations": tagged("human: q", "human: r")},
        Reason.WRONG_ROLES,
        "conversations[1] is by 'human'; expected gpt or function_call, since turns of the user and of the assistant "
        "alternate",
    ),
    (
        "sharegpt",
        {"conversations": tagged("gpt: Hello", "human: q", "gpt: a")},
        Reason.WRONG_ROLES,
        "conversations[0] is by 'gpt'; expected human or observation, since turns of the user and of the assistant "
        "alternate",
    ),
    (
        "sharegpt",
        {"conversations": tagged("human: q", "gpt: a", "human: thanks")},
        Reason.WRONG_ROLES,
        "conversations ends with a message by the user; expected an answer by the assistant at its end",
    ),
    ("sharegpt", {"conversations": []}, Reason.NO_PROMPT, "conversations holds no messages"),
    (
        "sharegpt",
        {"conversations": tagged("human: q", "gpt: a"), "images": ["a.png"]},
        Reason.WRONG_TYPE,
        "images is not empty; expected a conversation of text alone",
    ),
    (
        "completion",
        {"prompt": "q"},
        Reason.MISSING_COLUMN,
        "column 'completion' is missing; the row has 'prompt'",
    ),
    ("completion", {"completion": "a"}, Reason.MISSING_COLUMN, "column 'prompt' is missing; the row has 'completion'"),
    (
        "completion",
        {"prompt": said("user: q", "assistant: a"), "completion": "b"},
        Reason.WRONG_ROLES,
        "prompt ends with a message by the assistant; expected user or tool",
    ),
    (
        "completion",
        {"prompt": said("user: q", "user: r"), "completion": "b"},
        Reason.WRONG_ROLES,
        "prompt[1] is by the user after a message by the user; expected assistant",
    ),
    (
        "completion",
        {"prompt": "q", "completion": said("assistant: a", "assistant: b")},
        Reason.WRONG_ROLES,
        "prompt + completion[2] is by the assistant after a message by the assistant; expected user or tool",
    ),
    ("completion", {"prompt": " ", "completion": "b"}, Reason.NO_PROMPT, "the prompt is blank"),
    ("text", {"txt": "x"}, Reason.MISSING_COLUMN, "column 'text' is missing; the row has 'txt'"),
    ("text", {"text": None}, Reason.WRONG_TYPE, "text is null; expected text"),
    ("orca", {"system": "s", "question": " ", "chosen": "a"}, Reason.NO_PROMPT, "the prompt is blank"),
    (
        "orca",
        {"question": "q", "chosen": "a"},
        Reason.MISSING_COLUMN,
        "column 'system' is missing; the row has 'question', 'chosen'",
    ),
]


@pytest.mark.parametrize(("name", "row", "reason", "detail"), BAD)
def test_bad_rows(name: str, row: dict[str, Any], reason: Reason, detail: str) -> None:
    assert fails(reason, detail, name, row).reason.bad


def test_a_continuation_is_of_texts() -> None:
    row = {"prompt": said("user: q"), "completion": "a"}
    fails(Reason.WRONG_TYPE, "prompt is list; expected text", "completion", row, roles=False)


def test_two_system_texts() -> None:
    row = {"messages": said("system: a", "user: q", "assistant: a"), "sys": "b"}
    detail = "sys holds a system text, and messages begins with another"
    fails(Reason.WRONG_ROLES, detail, "messages", row, system_column="sys")


BLANK: list[tuple[str, dict[str, Any], str]] = [
    ("messages", {"messages": said("user: q", "assistant:  ")}, "the last answer of messages is blank"),
    (
        "messages",
        {"messages": said("user: q", "assistant:  ", "user: r", "assistant: a")},
        "an earlier answer of messages is blank",
    ),
    ("sharegpt", {"conversations": tagged("human: q", "gpt: \n")}, "the last answer of conversations is blank"),
    ("alpaca", {"instruction": "q", "output": ""}, "output is blank"),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q", ""]]}, "an earlier answer of history is blank"),
    ("completion", {"prompt": "q", "response": ""}, "response is blank"),
    ("text", {"text": " \n"}, "text is blank"),
    ("orca", {"system": "", "question": "q", "chosen": " "}, "chosen is blank"),
]


@pytest.mark.parametrize(("name", "row", "detail"), BLANK)
def test_blank_answers_are_dropped_or_kept(name: str, row: dict[str, Any], detail: str) -> None:
    error = fails(Reason.EMPTY, detail, name, row)
    assert not error.reason.bad
    assert learn(name, row, empty="keep") == error.group
    with pytest.raises(ConfigError, match="empty='no'; expected one of 'drop', 'keep'"):
        learn(name, row, empty="no")


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
def test_what_follows_the_last_answer_is_cut_on_demand(name: str) -> None:
    row = {
        "messages": said("user: q", "assistant: a", "user: thanks"),
        "conversations": tagged("human: q", "gpt: a", "human: thanks"),
    }
    group = learn(name, row, cut_unanswered=True)
    assert (group.prompt, group.responses) == (said("user: q"), (said("assistant: a"),))


# --------------------------------------------------------------------------------------------- chosen only

PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def chosen_only(row: dict[str, Any], of: str = "pair", empty: str = "drop", **options: Any) -> Group:
    return resolve_map_fn(
        {"type": "chosen_only_map_fn", "map_fn": {"type": f"{of}_map_fn", **options}, "empty": empty}
    )(row)


def test_the_chosen_answer() -> None:
    group = chosen_only({**PAIR, "margin": 2, "id": 3})
    assert group == Group(said("user: q"), (said("assistant: good"),), meta={"id": 3})


def test_the_better_of_answers_in_any_order() -> None:
    row = {"prompt": "q", "responses": ["bad", "good", "fair"], "ratings": [1, 3, 2]}
    assert chosen_only(row, "ranked").responses == (said("assistant: good"),)


def test_the_chosen_text() -> None:
    group = chosen_only({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, "text_pair")
    assert (group.prompt, group.responses) == ("The sky is", (" blue.",))


def test_conversations_that_part_early() -> None:
    row = {
        "chosen": said("user: q", "assistant: a", "user: r", "assistant: b"),
        "rejected": said("user: q", "assistant: x"),
    }
    group = chosen_only(row, "conversation_pair")
    assert group.prompt == row["chosen"][:3]
    assert group.responses == (said("assistant: b"),)


def test_rows_without_a_preference_that_have_a_good_answer() -> None:
    assert chosen_only({**PAIR, "rejected": "good"}).responses == (said("assistant: good"),)
    assert chosen_only({**PAIR, "rejected": " "}).responses == (said("assistant: good"),)
    assert chosen_only({**PAIR, "chosen": " "}, empty="keep").responses == (said("assistant:  "),)


@pytest.mark.parametrize(
    ("row", "of", "options", "reason", "detail"),
    [
        ({**PAIR, "chosen": " "}, "pair", {}, Reason.EMPTY, "the chosen answer is blank"),
        ({**PAIR, "margin": 0}, "pair", {}, Reason.TIE, "all answers are rated 0"),
        (
            {**PAIR, "margin": 0},
            "pair",
            {"ties": "keep"},
            Reason.TIE,
            "the best answers are rated alike, so that none is chosen",
        ),
        ({"prompt": "q"}, "pair", {}, Reason.MISSING_COLUMN, "column 'chosen' is missing; the row has 'prompt'"),
        (
            {"messages": said("user: q", "assistant: a"), "label": False},
            "kto",
            {},
            Reason.BELOW_MINIMUM,
            "the row holds one answer and no preference; expected two or more answers",
        ),
    ],
)
def test_rows_without_a_chosen_answer(
    row: dict[str, Any], of: str, options: dict[str, Any], reason: Reason, detail: str
) -> None:
    with pytest.raises(RowError) as caught:
        chosen_only(row, of, **options)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("chosen_only_map_fn", r"map_fn chosen_only_map_fn has no default for map_fn: write dict\(type=chosen_only"),
        ({"type": "chosen_only_map_fn", "map_fn": "no_map_fn"}, "no map function is called 'no_map_fn'"),
        (
            {"type": "chosen_only_map_fn", "map_fn": {"type": "pair_map_fn", "colour": 1}},
            "map_fn 'pair_map_fn': got an unexpected keyword argument 'colour'",
        ),
    ],
)
def test_the_inner_map_function_is_checked_before_any_row(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_map_fn(spec)


def test_the_inner_map_function_belongs_to_the_identity_of_the_table() -> None:
    """The cached table is named by it: the same in every process, another one for other inner options."""

    def identity(**options: Any) -> str:
        return map_fn_identity(
            resolve_map_fn({"type": "chosen_only_map_fn", "map_fn": {"type": "pair_map_fn", **options}})
        )

    assert identity() == identity()
    assert " at 0x" not in identity()
    assert identity() != identity(ties="keep")
    assert identity() != map_fn_identity(
        resolve_map_fn({"type": "chosen_only_map_fn", "map_fn": "conversation_pair_map_fn"})
    )


# -------------------------------------------------------------------------------------------- example rows


@pytest.mark.parametrize(
    ("layout", "name", "options", "prompt", "answer"),
    [
        ("orca_dpo_pairs", "orca", {}, said("system: You are terse.", "user: 2+2?"), "4"),
        ("kto", "messages", {}, said("user: a"), "b"),
        (
            "gsm8k",
            "completion",
            {"prompt_column": "question", "completion_column": "answer"},
            said("user: 2 eggs and 1,000 eggs?"),
            "2+1000=<<2+1000=1002>>1002\n#### 1,002",
        ),
    ],
)
def test_example_rows(
    layout: str, name: str, options: dict[str, Any], prompt: list[Message], answer: str, rows_of: RowsOf
) -> None:
    group = learn(name, rows_of(layout)[0], **options)
    assert group.prompt == prompt
    assert group.responses == ([{"role": "assistant", "content": answer}],)


@pytest.mark.parametrize(
    ("layout", "of", "answers"),
    [
        ("hh", "hh", ["An apple.", "A pear.", "Apple, sure.", "It says: Human: nature is odd.", "One.\n\nTwo."]),
        ("orca_dpo_pairs", "orca_dpo_pairs", ["4", "4"]),
        ("llamafactory_sharegpt", "llamafactory_sharegpt", ["good", "good"]),
        ("xtuner_preference", "pair", ["good"]),
        ("skywork_80k", "skywork", ["Apple."]),
    ],
)
def test_example_rows_of_preferences(layout: str, of: str, answers: list[str], rows_of: RowsOf) -> None:
    rows = rows_of(layout)[: len(answers)]
    groups = [chosen_only(row, of) for row in rows]
    assert [group.responses[0][-1]["content"] for group in groups] == answers  # type: ignore[index]


# ------------------------------------------------------------------------------------------------ real rows


def load(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    return json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def test_real_rows_of_sharegpt(shared_data: Path) -> None:
    """500 conversations of 2, 4 or 6 turns, and 300 with 211 calls of tools, in order."""
    rows = load(shared_data / "fastchat-mtbench" / "dummy_conversation.json")
    groups = [learn("sharegpt", row) for row in rows]
    assert Counter(len(group.prompt) for group in groups) == {1: 167, 3: 166, 5: 167}
    rows = load(shared_data / "llama-factory" / "glaive_toolcall_en_demo.json")
    groups = [learn("sharegpt", row) for row in rows]
    assert sum("tool_calls" in m for group in groups for m in group.conversations()[0]) == 211  # type: ignore[operator]
    assert [group.meta["tools"] for group in groups] == [row["tools"] for row in rows]
    for row, group in zip(rows, groups, strict=True):
        assert group.responses[0][0]["content"] == row["conversations"][-1]["value"]  # type: ignore[index]


def test_real_rows_of_alpaca(shared_data: Path) -> None:
    rows = load(shared_data / "llama-factory" / "identity.json")
    groups = [learn("alpaca", row) for row in rows]
    assert [group.prompt for group in groups] == [said(f"user: {row['instruction']}") for row in rows]
    assert [group.responses for group in groups] == [(said(f"assistant: {row['output']}"),) for row in rows]


def test_real_rows_of_messages(shared_data: Path) -> None:
    """KTO's demo has conversations of 2 to 12 messages in OpenAI's layout."""
    rows = load(shared_data / "llama-factory" / "kto_en_demo.json")
    groups = [learn("messages", row) for row in rows]
    assert Counter(len(group.prompt) for group in groups) == {1: 223, 5: 47, 7: 22, 11: 4, 3: 3, 9: 1}
    for row, group in zip(rows, groups, strict=True):
        assert [m["content"] for m in group.conversations()[0]] == [m["content"] for m in row["messages"]]  # type: ignore[index]


def test_real_rows_of_completions(shared_data: Path) -> None:
    rows = load(shared_data / "gsm8k" / "test.jsonl")
    groups = [learn("completion", row, prompt_column="question", completion_column="answer") for row in rows]
    assert len(groups) == 1319
    assert [group.responses[0][0]["content"] for group in groups] == [row["answer"] for row in rows]  # type: ignore[index]


# ------------------------------------------------------------------------------------------------- encoding


def test_groups_of_one_answer_can_be_encoded() -> None:
    from tiny_tokenizer import byte_tokenizer

    tokenizer = byte_tokenizer()
    groups = [learn("messages", LAYOUTS["messages"][1]), learn("text", {"text": "As it is."})]
    chat, text = GroupEncoder(tokenizer, max_length=512).encode(groups)
    assert not isinstance(chat, RowError)
    assert not isinstance(text, RowError)
    whole = tokenizer.apply_chat_template(groups[0].conversations()[0], tokenize=True, return_dict=False)
    assert [*chat.prompt_ids, *chat.response_ids[0]] == whole
    assert tokenizer.decode([*text.prompt_ids, *text.response_ids[0]]) == "As it is.<|im_end|>"
