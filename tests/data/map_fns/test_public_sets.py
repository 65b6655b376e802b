"""Public sets row by row: every outcome that a map function may have, and the line it gives for a bad row."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest

from xrlhf.data import map_fns
from xrlhf.data.map_fns.helpsteer import marked_turns
from xrlhf.data.map_fns.sharegpt import sharegpt_messages
from xrlhf.data.reasons import Reason, RowError
from xrlhf.errors import ConfigError
from xrlhf.structures import Group, Message


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def bot(text: str) -> Message:
    return {"role": "assistant", "content": text}


def texts(group: Group) -> list[str]:
    return [answer if isinstance(answer, str) else answer[-1]["content"] for answer in group.responses]


def talk(answer: str) -> list[Message]:
    return [user("q"), bot(answer)]


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def helped(response: str, helpfulness: Any, prompt: str = "q") -> dict[str, Any]:
    others = {"correctness": 2, "coherence": 4, "complexity": 1, "verbosity": 1}
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **others}


def completion(response: str, *four: Any, overall: Any = 5.0) -> dict[str, Any]:
    names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    notes = {name: {"Rating": rating} for name, rating in zip(names, four, strict=True)}
    return {"response": response, "overall_score": overall, "annotations": notes}


# A good row of each format, its options, and its answers, best first.
GOOD: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "shp": (
        {
            "history": "q",
            "human_ref_A": "a",
            "human_ref_B": "b",
            "labels": 0,
            "score_ratio": 2.5,
            "score_A": 2,
            "score_B": 5,
            "post_id": "p",
        },
        {},
        ["b", "a"],
    ),
    "stack_exchange_paired": ({"question": "q", "response_j": "a", "response_k": "b", "qid": 3}, {}, ["a", "b"]),
    "pku_saferlhf": (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1},
        {"label": "safer"},
        ["b", "a"],
    ),
    "helpsteer2": (helped("a", 3), {}, ["a"]),
    "helpsteer2_pair": ({"rows": [helped("a", 1), helped("b", 3)]}, {}, ["b", "a"]),
    "helpsteer2_preference": (
        {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 2},
        {},
        ["b", "a"],
    ),
    "helpsteer3_preference": (
        {"context": [user("q")], "response1": "a", "response2": "b", "overall_preference": -1},
        {},
        ["a", "b"],
    ),
    "orpo_dpo_mix_40k": ({"chosen": talk("a"), "rejected": talk("b"), "prompt": "x"}, {}, ["a", "b"]),
    "rlhflow_standard": (
        {"chosen": talk("a"), "rejected": talk("b"), "chosen_score": 2.0, "rejected_score": 1.0},
        {},
        ["a", "b"],
    ),
    "skywork": ({"chosen": talk("a"), "rejected": talk("b"), "source": "s"}, {}, ["a", "b"]),
    "llamafactory_v1": ({"chosen_messages": talk("a"), "rejected_messages": talk("b")}, {}, ["a", "b"]),
    "llamafactory_sharegpt": (
        {"conversations": [human("q")], "chosen": gpt("a"), "rejected": gpt("b"), "tools": "[]"},
        {},
        ["a", "b"],
    ),
    "llamafactory_alpaca": ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, {}, ["a", "b"]),
    "summarize_from_feedback": (
        {
            "info": {"post": "p", "title": "t", "subreddit": "s"},
            "summaries": [{"text": "a"}, {"text": "b"}],
            "choice": 1,
        },
        {},
        ["b", "a"],
    ),
    "polar_reference": (
        {"prompt": [user("q")], "reference": [bot("r")], "chosen": [bot("a")], "rejected": [bot("b")]},
        {},
        ["a", "b"],
    ),
    "kto": ({"messages": talk("a"), "label": False}, {}, ["a"]),
    "ultrafeedback": (
        {"instruction": "q", "completions": [completion("a", 1, 1, 1, 1), completion("b", "5", "4", "3", "2")]},
        {"rating": "mean"},
        ["b", "a"],
    ),
    "nectar": (
        {
            "prompt": "\n\nHuman: q\n\nAssistant: ",
            "answers": [{"answer": "a", "rank": 3}, {"answer": "b", "rank": 1.0}, {"answer": "c", "rank": 2}],
        },
        {},
        ["b", "c", "a"],
    ),
    "reward_bench": ({"prompt": "q", "chosen": "a", "rejected": "b", "subset": "s", "id": 0}, {}, ["a", "b"]),
    "reward_bench_2": ({"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"], "num_correct": 1}, {}, ["a", "b", "c"]),
    "rm_bench": ({"prompt": "q", "chosen": list("abc"), "rejected": list("def")}, {}, list("abcdef")),
    "llmbar": ({"input": "q", "output_1": "a", "output_2": "b", "label": 1}, {}, ["a", "b"]),
    "judgebench": ({"question": "q", "response_A": "a", "response_B": "b", "label": "A>B"}, {}, ["a", "b"]),
    "pandalm": (
        {
            "instruction": "q",
            "input": "",
            "response1": "a",
            "response2": "b",
            "annotator1": 2,
            "annotator2": 1,
            "annotator3": 2,
        },
        {},
        ["b", "a"],
    ),
    "autoj": ({"prompt": "q", "response 1": "a", "response 2": "b", "label": 0}, {}, ["a", "b"]),
}


def function_of(name: str) -> Callable[..., Group]:
    return getattr(map_fns, f"{name}_map_fn")


def change(row: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the row with another value at a path; ``...`` takes the key away."""
    copied = copy.deepcopy(row)
    inside = copied
    for key in path[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return copied


def refused(name: str, path: tuple[Any, ...], value: Any, **options: Any) -> RowError:
    row, always, _ = GOOD[name]
    with pytest.raises(RowError) as caught:
        function_of(name)(change(row, path, value), **{**always, **options})
    return caught.value


@pytest.mark.parametrize("name", GOOD)
def test_a_good_row(name: str) -> None:
    row, options, answers = GOOD[name]
    before = copy.deepcopy(row)
    group = function_of(name)(row, **options)
    assert texts(group) == answers
    assert [message["content"] for message in group.prompt if name != "summarize_from_feedback"] in ([], ["q"])  # type: ignore[index]
    assert row == before
    rated = name in ("helpsteer2", "kto", "ultrafeedback", "reward_bench_2", "rm_bench")
    assert (group.ratings is not None) == rated


@pytest.mark.parametrize("name", GOOD)
def test_responses_can_be_put_back_into_the_order_of_the_row(name: str) -> None:
    """The good rows hold their answers in alphabetical order."""
    row, options, answers = GOOD[name]
    group = function_of(name)(row, **options)
    assert group.in_row_order(texts(group)) == sorted(answers)
    assert (group.row_order is None) == (answers == sorted(answers))


# Where the answers of each format stand: the place of a text that can be blanked, and of the same one elsewhere.
ANSWERS: dict[str, tuple[Any, ...]] = {
    "shp": ("human_ref_A",),
    "stack_exchange_paired": ("response_k",),
    "pku_saferlhf": ("response_1",),
    "helpsteer2": ("response",),
    "helpsteer2_pair": ("rows", 0, "response"),
    "helpsteer2_preference": ("response_1",),
    "helpsteer3_preference": ("response2",),
    "orpo_dpo_mix_40k": ("chosen", 1, "content"),
    "rlhflow_standard": ("chosen", 1, "content"),
    "skywork": ("chosen", 1, "content"),
    "llamafactory_v1": ("chosen_messages", 1, "content"),
    "llamafactory_sharegpt": ("rejected", "value"),
    "llamafactory_alpaca": ("rejected",),
    "summarize_from_feedback": ("summaries", 0, "text"),
    "polar_reference": ("chosen", 0, "content"),
    "kto": ("messages", 1, "content"),
    "ultrafeedback": ("completions", 1, "response"),
    "nectar": ("answers", 2, "answer"),
    "reward_bench": ("rejected",),
    "reward_bench_2": ("rejected", 1),
    "rm_bench": ("chosen", 2),
    "llmbar": ("output_2",),
    "judgebench": ("response_B",),
    "pandalm": ("response2",),
    "autoj": ("response 2",),
}


@pytest.mark.parametrize("name", GOOD)
def test_blank_answers_are_dropped_or_kept(name: str) -> None:
    error = refused(name, ANSWERS[name], " \n")
    assert (error.reason, error.detail[-9:]) == (Reason.EMPTY, " is blank")
    row, options, answers = GOOD[name]
    group = function_of(name)(change(row, ANSWERS[name], " \n"), **options, empty="keep")
    assert sorted(texts(group)) == sorted([*set(answers) & set(texts(group)), " \n"])
    assert error.group == group


@pytest.mark.parametrize("name", GOOD)
def test_answers_that_are_no_text(name: str) -> None:
    assert refused(name, ANSWERS[name], None).reason is Reason.WRONG_TYPE
    assert refused(name, ANSWERS[name], {"a": 1}).reason is Reason.WRONG_TYPE
    row, options, _ = GOOD[name]
    assert "True" in texts(function_of(name)(change(row, ANSWERS[name], True), **options))


@pytest.mark.parametrize("name", [name for name in GOOD if name not in ("helpsteer2", "kto")])
def test_equal_answers_are_dropped(name: str) -> None:
    row, _, answers = GOOD[name]
    own = row
    for key in ANSWERS[name]:
        own = own[key]
    other = next(text for text in answers if text != own)
    error = refused(name, ANSWERS[name], other)
    assert error.reason is Reason.IDENTICAL
    assert error.group is not None
    assert sorted(set(texts(error.group))) == sorted(set(answers) - {own})  # type: ignore[arg-type]


# What is wrong with a row, by format: the place, the value (`...` takes the column away), the reason and the line.
BAD: list[tuple[str, tuple[Any, ...], Any, Reason, str]] = [
    ("shp", ("labels",), 2, Reason.BAD_LABEL, "labels is 2; expected 0 or 1"),
    ("shp", ("labels",), True, Reason.BAD_LABEL, "labels is True; expected 0 or 1"),
    ("shp", ("labels",), "1", Reason.BAD_LABEL, "labels is '1'; expected 0 or 1"),
    ("shp", ("history",), "", Reason.NO_PROMPT, "the prompt is blank"),
    ("pku_saferlhf", ("safer_response_id",), 2, Reason.BAD_LABEL, "safer_response_id is 2; expected 0 or 1"),
    (
        "pku_saferlhf",
        ("safer_response_id",),
        ...,
        Reason.MISSING_COLUMN,
        "column 'safer_response_id' is missing; the row has 'prompt', 'response_0', 'response_1', "
        "'better_response_id'; this variant of the set has the label 'better' alone",
    ),
    ("helpsteer2", ("verbosity",), 5, Reason.BAD_LABEL, "verbosity is 5; expected 0 to 4"),
    ("helpsteer2", ("coherence",), 1.5, Reason.BAD_LABEL, "coherence is 1.5; expected 0 to 4"),
    (
        "helpsteer2_pair",
        ("rows", 1, "prompt"),
        "other",
        Reason.NO_PROMPT,
        "rows[0] and rows[1] have different prompts; expected rows of one prompt side by side",
    ),
    ("helpsteer2_pair", ("rows", 1, "verbosity"), -1, Reason.BAD_LABEL, "rows[1].verbosity is -1; expected 0 to 4"),
    ("helpsteer2_pair", ("rows", 0, "helpfulness"), 3, Reason.TIE, "all answers are rated 3"),
    ("helpsteer2_pair", ("rows",), [helped("a", 1)], Reason.BELOW_MINIMUM, "rows holds 1 rows; expected 2 or more"),
    ("helpsteer2_pair", ("rows",), "x", Reason.WRONG_TYPE, "rows is text; expected a list of joined rows"),
    (
        "helpsteer2_pair",
        ("rows",),
        ...,
        Reason.MISSING_COLUMN,
        "column 'rows' is missing; the row has none; two rows make a pair: join them with "
        "dict(type=JoinedRowsSource, source=..., count=2), or read each row for itself with helpsteer2_map_fn",
    ),
    (
        "helpsteer2_preference",
        ("preference_strength",),
        4,
        Reason.BAD_LABEL,
        "preference_strength is 4; expected -3 to 3",
    ),
    ("helpsteer2_preference", ("preference_strength",), 0, Reason.TIE, "all answers are rated 0"),
    (
        "helpsteer3_preference",
        ("overall_preference",),
        None,
        Reason.BAD_LABEL,
        "overall_preference is null; expected -3 to 3",
    ),
    ("helpsteer3_preference", ("overall_preference",), 0.0, Reason.TIE, "all answers are rated 0"),
    (
        "helpsteer3_preference",
        ("context",),
        [user("q"), bot("a")],
        Reason.WRONG_ROLES,
        "context ends with a message by the assistant; expected user or tool",
    ),
    (
        "skywork",
        ("chosen",),
        "text",
        Reason.WRONG_TYPE,
        "chosen is text; expected a list of messages (pair_map_fn and hh_map_fn read texts)",
    ),
    (
        "orpo_dpo_mix_40k",
        ("rejected", 0, "content"),
        "other",
        Reason.NO_PROMPT,
        "chosen and rejected share no message by the user before they differ",
    ),
    (
        "llamafactory_v1",
        ("chosen_messages", 1, "content"),
        [{"type": "image", "value": "x"}],
        Reason.WRONG_TYPE,
        "chosen_messages[1].content[0] is a part of type 'image'; expected 'text'",
    ),
    (
        "llamafactory_sharegpt",
        ("conversations",),
        [human("q"), gpt("x")],
        Reason.WRONG_ROLES,
        "conversations ends with a message by the assistant; expected human or observation",
    ),
    (
        "llamafactory_sharegpt",
        ("conversations",),
        [gpt("x"), human("q")],
        Reason.WRONG_ROLES,
        "conversations[0] is by 'gpt'; expected human or observation, since turns of the user and of the assistant "
        "alternate",
    ),
    (
        "llamafactory_sharegpt",
        ("conversations",),
        [{"from": "system", "value": "s"}, human("q"), human("r"), gpt("x")],
        Reason.WRONG_ROLES,
        "conversations[2] is by 'human'; expected gpt or function_call, since turns of the user and of the assistant "
        "alternate",
    ),
    (
        "llamafactory_sharegpt",
        ("conversations", 0, "from"),
        "bing",
        Reason.WRONG_ROLES,
        "conversations[0] has the role 'bing'; expected one of system, human, gpt, observation, function_call",
    ),
    ("llamafactory_sharegpt", ("conversations",), [], Reason.NO_PROMPT, "conversations holds no messages"),
    (
        "llamafactory_sharegpt",
        ("chosen",),
        [gpt("a")],
        Reason.WRONG_TYPE,
        "chosen is list; expected one object with 'from' and 'value'",
    ),
    (
        "llamafactory_sharegpt",
        ("chosen", "from"),
        "human",
        Reason.WRONG_ROLES,
        "chosen[0] has the role 'human'; expected one of gpt, function_call",
    ),
    (
        "llamafactory_sharegpt",
        ("images",),
        ["a.png"],
        Reason.WRONG_TYPE,
        "images is not empty; expected a conversation of text alone",
    ),
    (
        "llamafactory_alpaca",
        ("history",),
        [["a", "b", "c"]],
        Reason.WRONG_TYPE,
        "history[0] is a list of 3; expected [user text, assistant text]",
    ),
    (
        "llamafactory_alpaca",
        ("history",),
        ["ab"],
        Reason.WRONG_TYPE,
        "history[0] is text; expected [user text, assistant text]",
    ),
    ("llamafactory_alpaca", ("history",), "ab", Reason.WRONG_TYPE, "history is text; expected a list of turns"),
    ("llamafactory_alpaca", ("instruction",), " ", Reason.NO_PROMPT, "the prompt is blank"),
    ("summarize_from_feedback", ("choice",), 2, Reason.BAD_LABEL, "choice is 2; expected 0 or 1"),
    ("summarize_from_feedback", ("summaries",), [{"text": "a"}], Reason.BAD_LABEL, "summaries holds 1; expected 2"),
    (
        "summarize_from_feedback",
        ("summaries", 1),
        "b",
        Reason.WRONG_TYPE,
        "summaries[1] is text; expected an object (summaries)",
    ),
    (
        "summarize_from_feedback",
        ("info", "post"),
        ...,
        Reason.NO_PROMPT,
        "info holds neither a post nor an article; expected one of them",
    ),
    (
        "summarize_from_feedback",
        ("info", "article"),
        "x",
        Reason.NO_PROMPT,
        "info holds both a post and an article; expected one of them",
    ),
    (
        "summarize_from_feedback",
        ("info", "title"),
        "",
        Reason.NO_PROMPT,
        "info.title is missing or blank; expected text",
    ),
    (
        "summarize_from_feedback",
        ("info", "subreddit"),
        None,
        Reason.NO_PROMPT,
        "info.subreddit is missing or blank beside a post; expected text",
    ),
    (
        "summarize_from_feedback",
        ("info",),
        "x",
        Reason.WRONG_TYPE,
        "info is text; expected an object with title and post or article",
    ),
    ("polar_reference", ("wrapper",), "x", Reason.BAD_LABEL, "wrapper is 'x'; expected 'sft' or 'pretrain'"),
    ("polar_reference", ("reference",), [bot("")], Reason.EMPTY, "reference is blank"),
    ("polar_reference", ("reference",), None, Reason.WRONG_TYPE, "reference is null; expected text"),
    ("kto", ("label",), 1, Reason.BAD_LABEL, "label is 1; expected the boolean true or false"),
    ("kto", ("label",), "true", Reason.BAD_LABEL, "label is 'true'; expected the boolean true or false"),
    ("kto", ("label",), ..., Reason.MISSING_COLUMN, "column 'label' is missing; the row has 'messages'"),
    (
        "kto",
        ("messages",),
        [user("q")],
        Reason.WRONG_ROLES,
        "messages holds no message by the assistant; expected an answer by the assistant at its end",
    ),
    (
        "kto",
        ("messages",),
        [],
        Reason.WRONG_ROLES,
        "messages holds no messages; expected an answer by the assistant at its end",
    ),
    (
        "kto",
        ("messages",),
        [bot("a")],
        Reason.NO_PROMPT,
        "messages holds an answer and nothing before it; expected a prompt",
    ),
    (
        "kto",
        ("messages",),
        ...,
        Reason.MISSING_COLUMN,
        "found 'label'; expected one of: messages; prompt + completion; instruction + output",
    ),
    (
        "ultrafeedback",
        ("completions", 0, "annotations", "honesty", "Rating"),
        "N/A",
        Reason.UNRATED,
        "completions[0] has no rating of mean",
    ),
    (
        "ultrafeedback",
        ("completions", 0, "annotations", "honesty", "Rating"),
        6,
        Reason.BAD_LABEL,
        "completions[0].annotations.honesty.Rating is 6; expected 1 to 5 or 'N/A'",
    ),
    (
        "ultrafeedback",
        ("completions", 0, "annotations", "honesty"),
        "4",
        Reason.WRONG_TYPE,
        "completions[0].annotations.honesty is text; expected an object",
    ),
    (
        "ultrafeedback",
        ("completions", 1, "annotations"),
        ...,
        Reason.WRONG_TYPE,
        "completions[1].annotations is null; expected an object",
    ),
    (
        "ultrafeedback",
        ("completions",),
        [completion("a", 1, 1, 1, 1)],
        Reason.BELOW_MINIMUM,
        "completions holds 1 answers; expected 2 or more",
    ),
    (
        "ultrafeedback",
        ("completions", 1),
        completion("b", 1, 1, 1, 1),
        Reason.TIE,
        "all answers are rated 1",
    ),
    ("nectar", ("answers", 0, "rank"), 0, Reason.BAD_LABEL, "answers[0].rank is 0.0; expected 1 (the best) or more"),
    ("nectar", ("answers", 0, "rank"), "1", Reason.BAD_LABEL, "answers[0].rank is '1'; expected a finite number"),
    ("nectar", ("answers",), [], Reason.BELOW_MINIMUM, "answers holds 0 answers; expected 2 or more"),
    (
        "nectar",
        ("prompt",),
        "\n\nHuman: q\n\nAssistant: a",
        Reason.WRONG_ROLES,
        "prompt ends with a message by the assistant; expected user or tool",
    ),
    ("reward_bench_2", ("chosen",), "a", Reason.WRONG_TYPE, "chosen is text; expected a list of texts"),
    ("reward_bench_2", ("rejected",), [], Reason.BAD_LABEL, "rejected is an empty list; expected one answer or more"),
    (
        "reward_bench_2",
        ("num_correct",),
        2,
        Reason.BAD_LABEL,
        "num_correct is 2, but chosen and rejected hold 1",
    ),
    ("rm_bench", ("chosen",), ["a"], Reason.BAD_LABEL, "chosen holds 1 answers; expected 3, one of each style"),
    ("llmbar", ("label",), 0, Reason.BAD_LABEL, "label is 0; expected 1 or 2"),
    ("judgebench", ("label",), "A=B", Reason.BAD_LABEL, "label is 'A=B'; expected 'A>B' or 'B>A'"),
    ("judgebench", ("label",), ["A>B"], Reason.BAD_LABEL, "label is list; expected 'A>B' or 'B>A'"),
    ("pandalm", ("annotator1",), 3, Reason.BAD_LABEL, "annotator1 is 3; expected 0, 1 or 2"),
    ("pandalm", ("annotator1",), 0, Reason.TIE, "all answers are rated 0"),
    ("autoj", ("label",), 3, Reason.BAD_LABEL, "label is 3; expected 0, 1 or 2"),
    ("autoj", ("label",), 2, Reason.TIE, "all answers are rated 0"),
]


@pytest.mark.parametrize(("name", "path", "value", "reason", "detail"), BAD)
def test_rows_that_cannot_be_used(name: str, path: tuple[Any, ...], value: Any, reason: Reason, detail: str) -> None:
    error = refused(name, path, value)
    assert (error.reason, error.detail) == (reason, detail)
    scorable = reason in (Reason.EMPTY, Reason.TIE, Reason.IDENTICAL, Reason.UNRATED)
    assert (error.group is not None) == scorable


@pytest.mark.parametrize("name", [name for name in GOOD if name not in ("kto", "helpsteer2_pair")])
def test_every_column_that_is_read_is_missed_by_name(name: str) -> None:
    row, options, _ = GOOD[name]
    function = function_of(name)
    needed = [column.name for column in map_fns.find_format(name).columns if not column.optional and column.name in row]
    assert needed
    ignored = {"prompt"} if name == "orpo_dpo_mix_40k" else {"source", "subset", "id"}
    for column in set(needed) - ignored:
        if name == "pku_saferlhf" and column == "better_response_id":
            continue
        if name == "pandalm" and column == "input":
            continue
        with pytest.raises(RowError) as caught:
            function(change(row, (column,), ...), **options)
        assert caught.value.reason is Reason.MISSING_COLUMN
        assert caught.value.detail.startswith(f"column {column!r} is missing; the row has ")


# ------------------------------------------------------------------------------------------------ ties and ratings


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("helpsteer2_pair", ("rows", 0, "helpfulness"), 3),
        ("helpsteer2_preference", ("preference_strength",), 0),
        ("helpsteer3_preference", ("overall_preference",), 0),
        ("pandalm", ("annotator1",), 0),
        ("autoj", ("label",), 2),
        ("ultrafeedback", ("completions", 1), completion("b", 1, 1, 1, 1)),
    ],
)
def test_a_tie_is_kept_with_equal_ratings_in_the_order_of_the_row(name: str, path: tuple[Any, ...], value: Any) -> None:
    row, options, _ = GOOD[name]
    group = function_of(name)(change(row, path, value), **options, ties="keep")
    assert texts(group) == ["a", "b"]
    assert group.ratings is not None
    assert len(set(group.ratings)) == 1
    assert group.row_order is None
    assert refused(name, path, value).group == group


def test_every_function_with_ties_says_so_in_the_same_words() -> None:
    for info in map_fns.describe_formats():
        for option in info.options:
            if option.name in ("ties", "empty"):
                assert (option.default, option.choices) == ("drop", ("drop", "keep"))
            if option.name == "ratings":
                assert option.default is False


@pytest.mark.parametrize(
    ("name", "ratings"),
    [
        ("shp", (5.0, 2.0)),
        ("helpsteer2_pair", (3.0, 1.0)),
        ("helpsteer2_preference", (2.0, 0.0)),
        ("helpsteer3_preference", (1.0, 0.0)),
        ("rlhflow_standard", (2.0, 1.0)),
        ("nectar", (-1.0, -2.0, -3.0)),
    ],
)
def test_ratings_are_kept_on_demand(name: str, ratings: tuple[float, ...]) -> None:
    row, options, _ = GOOD[name]
    assert function_of(name)(row, **options).ratings is None
    assert function_of(name)(row, **options, ratings=True).ratings == ratings


def test_equal_ranks_show_as_ratings() -> None:
    row = change(GOOD["nectar"][0], ("answers", 2, "rank"), 3)
    group = map_fns.nectar_map_fn(row)
    assert (texts(group), group.ratings) == (["b", "a", "c"], (-1.0, -3.0, -3.0))
    assert group.row_order == (1, 0, 2)


# ------------------------------------------------------------------------------------------ one format after another


def test_shp_needs_the_ratio_it_is_asked_for() -> None:
    row = GOOD["shp"][0]
    assert map_fns.shp_map_fn(row, min_ratio=2.5).meta == {"post_id": "p"}
    assert refused("shp", ("post_id",), "p", min_ratio=3).detail == "score_ratio is 2.5; min_ratio is 3"
    assert refused("shp", ("score_ratio",), None, min_ratio=3).reason is Reason.BAD_LABEL
    with pytest.raises(ConfigError, match=r"min_ratio=0\.5; expected 1 or more"):
        map_fns.shp_map_fn(row, min_ratio=0.5)


def test_shp_votes_must_not_contradict_the_label() -> None:
    error = refused("shp", ("score_A",), 9, ratings=True)
    assert error.detail == "score_A (9) is above score_B (5), against the order of the answers"
    assert refused("shp", ("score_A",), 5, ratings=True).reason is Reason.TIE


def test_pku_has_no_default_label() -> None:
    row = GOOD["pku_saferlhf"][0]
    with pytest.raises(TypeError, match="label"):
        map_fns.pku_saferlhf_map_fn(row)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="label='nicer'; expected one of 'better', 'safer'"):
        map_fns.pku_saferlhf_map_fn(row, label="nicer")  # type: ignore[arg-type]


@pytest.mark.parametrize(("strength", "minimum", "kept"), [(1, 1, True), (-1, 2, False), (2, 3, False), (-3, 3, True)])
def test_a_minimum_strength(strength: int, minimum: int, kept: bool) -> None:
    row = change(GOOD["helpsteer2_preference"][0], ("preference_strength",), strength)
    if kept:
        group = map_fns.helpsteer2_preference_map_fn(row, min_strength=minimum)
        assert texts(group)[0] == ("b" if strength > 0 else "a")
        return
    with pytest.raises(RowError) as caught:
        map_fns.helpsteer2_preference_map_fn(row, min_strength=minimum)
    assert caught.value.reason is Reason.BELOW_MINIMUM
    assert caught.value.detail == f"preference_strength is {strength}; min_strength asks for {minimum} either way"


def test_a_minimum_strength_that_is_none() -> None:
    with pytest.raises(ConfigError, match="min_strength=0; expected 1, 2 or 3"):
        map_fns.helpsteer3_preference_map_fn(GOOD["helpsteer3_preference"][0], min_strength=0)


def test_helpsteer3_takes_a_text_as_context() -> None:
    row = change(GOOD["helpsteer3_preference"][0], ("context",), "q")
    assert map_fns.helpsteer3_preference_map_fn(row).prompt == [user("q")]


@pytest.mark.parametrize("attribute", ["helpfulness", "correctness", "coherence", "complexity", "verbosity"])
def test_any_attribute_may_decide(attribute: Any) -> None:
    low, high = helped("a", 2), helped("b", 2)
    low[attribute], high[attribute] = 0, 4
    group = map_fns.helpsteer2_pair_map_fn({"rows": [low, high]}, attribute=attribute, ratings=True)
    assert (texts(group), group.ratings) == (["b", "a"], (4.0, 0.0))
    assert group.attributes is not None
    assert group.attributes[attribute] == (4.0, 0.0)
    assert map_fns.helpsteer2_map_fn(high, attribute=attribute).ratings == (4.0,)


def test_an_attribute_that_there_is_not() -> None:
    for function, row in ((map_fns.helpsteer2_map_fn, helped("a", 1)), (map_fns.helpsteer2_pair_map_fn, {"rows": []})):
        with pytest.raises(ConfigError, match="attribute='length'; expected one of 'helpfulness', "):
            function(row, attribute="length")  # type: ignore[operator]


MARK = "\n<extra_id_1>"


def test_marked_turns_lose_their_marks_and_nothing_else() -> None:
    text = f"\nDefine X\n{MARK}Assistant\n X\n{MARK}User\nagain\n"
    assert marked_turns(text, "prompt") == [user("\nDefine X\n"), bot(" X\n"), user("again\n")]
    assert marked_turns("one", "prompt") == [user("one")]


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (f"a{MARK}Assistant\nb", "prompt ends with a turn by the assistant; expected user"),
        (f"a{MARK}User\nb", "turns 1 and 2 of prompt are both by user"),
        (f"a{MARK}Assistant\nb{MARK}Assistant\nc{MARK}User\nd", "turns 2 and 3 of prompt are both by assistant"),
        (f"a{MARK}System\nb", "turn 1 of prompt holds <extra_id_1> without Assistant or User on its line"),
    ],
)
def test_marks_out_of_order(text: str, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        marked_turns(text, "prompt")
    assert (caught.value.reason, caught.value.detail) == (Reason.WRONG_ROLES, detail)


def test_scores_of_rlhflow_rows() -> None:
    assert refused("rlhflow_standard", ("chosen_score",), 1.0, ratings=True).reason is Reason.TIE
    assert refused("rlhflow_standard", ("chosen_score",), 0.0, ratings=True).reason is Reason.BAD_LABEL
    assert refused("rlhflow_standard", ("chosen_score",), ..., ratings=True).reason is Reason.MISSING_COLUMN
    row = change(GOOD["rlhflow_standard"][0], ("chosen_score",), 1.0)
    assert map_fns.rlhflow_standard_map_fn(row, ratings=True, ties="keep").ratings == (1.0, 1.0)


def test_conversations_that_part_early() -> None:
    chosen = [user("q"), bot("x"), user("r"), bot("a")]
    rejected = [user("q"), bot("y"), user("s"), bot("b")]
    for name in ("skywork", "orpo_dpo_mix_40k", "rlhflow_standard"):
        group = function_of(name)({"chosen": chosen, "rejected": rejected})
        assert group.responses == (chosen[1:], rejected[1:])
        with pytest.raises(RowError) as caught:
            function_of(name)({"chosen": chosen, "rejected": rejected}, different_turns="drop")
        assert caught.value.reason is Reason.DIFFERENT_TURNS


class TestShareGpt:
    def test_a_system_message_wins_over_the_column(self) -> None:
        row = {**GOOD["llamafactory_sharegpt"][0], "system": "column"}
        group = map_fns.llamafactory_sharegpt_map_fn(row)
        assert group.prompt == [{"role": "system", "content": "column"}, user("q")]
        assert group.meta == {"tools": "[]"}
        row["conversations"] = [{"from": "system", "value": "own"}, human("q")]
        assert map_fns.llamafactory_sharegpt_map_fn(row).prompt[0]["content"] == "own"  # type: ignore[index]
        row["conversations"] = [{"from": "system", "value": " "}, human("q")]
        assert map_fns.llamafactory_sharegpt_map_fn(row).prompt[0]["content"] == "column"  # type: ignore[index]
        assert map_fns.llamafactory_sharegpt_map_fn({**row, "system": ""}).prompt == [user("q")]

    def test_tools_are_called_and_answer(self) -> None:
        call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
        row = {
            "conversations": [human("q"), call, {"from": "observation", "value": "2"}],
            "chosen": gpt("a"),
            "rejected": call,
        }
        group = map_fns.llamafactory_sharegpt_map_fn(row)
        calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
        called = {"role": "assistant", "content": "", "tool_calls": calls}
        assert group.prompt == [user("q"), called, {"role": "tool", "content": "2"}]
        assert group.responses == ([bot("a")], [called])

    def test_a_call_that_is_no_json(self) -> None:
        turns = [human("q"), {"from": "function_call", "value": "add(1)"}]
        with pytest.raises(RowError) as caught:
            sharegpt_messages(turns, "m")
        assert caught.value.detail == (
            "m[1].value is text that is not JSON; expected a tool call with 'name' and 'arguments'"
        )

    def test_other_names_of_columns_and_tags(self) -> None:
        row = {
            "messages": [{"role": "sys", "content": "s"}, {"role": "user", "content": "q"}],
            "good": {"role": "model", "content": "a"},
            "bad": {"role": "model", "content": "b"},
            "functions": [{"name": "add"}],
        }
        options = {
            "conversations_column": "messages",
            "chosen_column": "good",
            "rejected_column": "bad",
            "tools_column": "functions",
            "role_key": "role",
            "content_key": "content",
            "user_tag": "user",
            "assistant_tag": "model",
            "system_tag": "sys",
        }
        group = map_fns.llamafactory_sharegpt_map_fn(row, **options)  # type: ignore[arg-type]
        assert group.prompt == [{"role": "system", "content": "s"}, user("q")]
        assert texts(group) == ["a", "b"]
        assert group.meta == {"tools": [{"name": "add"}]}

    def test_two_tags_alike(self) -> None:
        with pytest.raises(ConfigError, match="two are the same"):
            map_fns.llamafactory_sharegpt_map_fn(GOOD["llamafactory_sharegpt"][0], user_tag="gpt")


def test_alpaca_prompts() -> None:
    row = {
        **GOOD["llamafactory_alpaca"][0],
        "input": "more\n",
        "system": "s",
        "history": [["a", "b"], ("c", "d")],
    }
    expected = [{"role": "system", "content": "s"}, user("a"), bot("b"), user("c"), bot("d"), user("q\nmore\n")]
    assert map_fns.llamafactory_alpaca_map_fn(row).prompt == expected
    nothing = {**row, "input": None, "system": None, "history": None}
    assert map_fns.llamafactory_alpaca_map_fn(nothing).prompt == [user("q")]
    renamed = {"ask": "q", "with": "x", "good": "a", "poor": "b"}
    group = map_fns.llamafactory_alpaca_map_fn(
        renamed, instruction_column="ask", input_column="with", chosen_column="good", rejected_column="poor"
    )
    assert (group.prompt, texts(group)) == ([user("q\nx")], ["a", "b"])


def test_summaries_of_news() -> None:
    row = change(GOOD["summarize_from_feedback"][0], ("info",), {"article": "News.", "title": "T", "post": None})
    assert map_fns.summarize_from_feedback_map_fn(row).prompt == [user("TITLE: T\n\nNews.\n\nTL;DR:")]


def test_a_reference_and_its_wrapper_are_passed_on() -> None:
    row = {**GOOD["polar_reference"][0], "reference": "r", "wrapper": "sft"}
    assert map_fns.polar_reference_map_fn(row).meta == {"reference": [bot("r")], "wrapper": "sft"}


def test_a_blank_reference() -> None:
    error = refused("polar_reference", ("reference",), [bot(" ")])
    assert error.group is not None
    assert texts(error.group) == ["a", "b"]
    row = {**GOOD["polar_reference"][0], "reference": " "}
    assert map_fns.polar_reference_map_fn(row, empty="keep").meta["reference"] == [bot(" ")]


class TestKto:
    @pytest.mark.parametrize(
        "row",
        [
            {"messages": [user("q"), bot("a")]},
            {"prompt": [user("q")], "completion": [bot("a")]},
            {"prompt": "q", "completion": "a", "messages": None},
            {"instruction": "q", "input": "", "output": "a"},
        ],
    )
    @pytest.mark.parametrize("label", [True, False])
    def test_layouts(self, row: dict[str, Any], label: bool) -> None:
        for name in ("label", "kto_tag"):
            group = map_fns.kto_map_fn({**row, name: label})
            assert (group.prompt, group.responses) == ([user("q")], ([bot("a")],))
            assert group.ratings == (float(label),)
        assert map_fns.kto_map_fn({**row, "liked": label}, label_column="liked").ratings == (float(label),)

    def test_a_prompt_is_needed_beside_a_completion(self) -> None:
        with pytest.raises(RowError) as caught:
            map_fns.kto_map_fn({"completion": "a", "label": True})
        assert caught.value.reason is Reason.MISSING_COLUMN


class TestUltraFeedback:
    ROW: dict[str, Any] = {  # noqa: RUF012
        "instruction": "q",
        "source": "s",
        "completions": [
            completion("a", "1", "N/A", "5", "3", overall=2.0),
            completion("b", "2", "4", "4", "2", overall=9.5),
            completion("c", 3, 2, 3, 1, overall=4),
        ],
    }

    @pytest.mark.parametrize(
        ("rating", "answers", "ratings"),
        [
            ("overall", "bca", (9.5, 4.0, 2.0)),
            ("helpfulness", "cba", (3.0, 2.0, 1.0)),
            ("instruction_following", "abc", (5.0, 4.0, 3.0)),
            ("truthfulness", "abc", (3.0, 2.0, 1.0)),
        ],
    )
    def test_the_rating_that_is_named_decides(self, rating: Any, answers: str, ratings: tuple[float, ...]) -> None:
        group = map_fns.ultrafeedback_map_fn(self.ROW, rating=rating)
        assert (texts(group), group.ratings, group.meta) == (list(answers), ratings, {"source": "s"})
        assert group.attributes is not None
        assert group.attributes["instruction_following"] == tuple({"a": 5.0, "b": 4.0, "c": 3.0}[t] for t in answers)
        assert math.isnan(group.attributes["honesty"][answers.index("a")])

    @pytest.mark.parametrize(("rating", "ratings"), [("honesty", (4.0, 2.0)), ("mean", (3.0, 2.25))])
    def test_answers_without_a_rating(self, rating: Any, ratings: tuple[float, ...]) -> None:
        with pytest.raises(RowError) as caught:
            map_fns.ultrafeedback_map_fn(self.ROW, rating=rating)
        assert (caught.value.reason, caught.value.detail) == (
            Reason.UNRATED,
            f"completions[0] has no rating of {rating}",
        )
        assert caught.value.group is not None
        assert texts(caught.value.group) == ["a", "b", "c"]
        group = map_fns.ultrafeedback_map_fn(self.ROW, rating=rating, unrated="leave_out")
        assert (texts(group), group.ratings) == (["b", "c"], ratings)
        two = {**self.ROW, "completions": self.ROW["completions"][:2]}
        with pytest.raises(RowError) as caught:
            map_fns.ultrafeedback_map_fn(two, rating=rating, unrated="leave_out")
        assert caught.value.detail == f"1 answers have a rating of {rating}; expected 2 or more"

    def test_no_rating_decides_by_itself(self) -> None:
        with pytest.raises(TypeError, match="rating"):
            map_fns.ultrafeedback_map_fn(self.ROW)  # type: ignore[call-arg]
        with pytest.raises(ConfigError, match="rating='best'; expected one of 'overall', 'mean', "):
            map_fns.ultrafeedback_map_fn(self.ROW, rating="best")  # type: ignore[arg-type]


def test_prompts_of_ranked_lists() -> None:
    row = GOOD["nectar"][0]
    for prompt in ("q", [user("q")], "\n\nHuman: q"):
        assert map_fns.nectar_map_fn({**row, "prompt": prompt}).prompt == [user("q")]
    turns = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"
    assert map_fns.nectar_map_fn({**row, "prompt": turns}).prompt == [user("q"), bot("a"), user("r")]
    renamed = {"ask": "q", "list": [{"text": "a", "place": 2}, {"text": "b", "place": 1}]}
    names = {"prompt_column": "ask", "answers_column": "list", "answer_key": "text", "rank_key": "place"}
    assert texts(map_fns.nectar_map_fn(renamed, **names)) == ["b", "a"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("votes", "answers"),
    [((1, 1, 1), "ab"), ((2, 0, 2), "ba"), ((1, 2, 1), "ab"), ((0, 0, 1), None), ((0, 1, 2), None)],
)
def test_two_of_three_decide(votes: tuple[int, int, int], answers: str | None) -> None:
    row = {**GOOD["pandalm"][0], **dict(zip(("annotator1", "annotator2", "annotator3"), votes, strict=True))}
    if answers is None:
        with pytest.raises(RowError) as caught:
            map_fns.pandalm_map_fn(row)
        assert caught.value.reason is Reason.TIE
        assert map_fns.pandalm_map_fn(row, ties="keep").ratings == (0.0, 0.0)
    else:
        assert texts(map_fns.pandalm_map_fn(row)) == list(answers)


def test_several_right_answers_are_tied() -> None:
    row = {"prompt": "q", "chosen": ["a", "b"], "rejected": ["c"], "num_correct": 2, "total_completions": 3}
    assert map_fns.reward_bench_2_map_fn(row).ratings == (1.0, 1.0, 0.0)


def test_every_new_format_is_covered_here() -> None:
    """The general layouts and the formats of test files of their own are covered elsewhere."""
    elsewhere = {"pair", "text_pair", "conversation_pair", "ranked", "hh", "orca_dpo_pairs"}
    elsewhere |= {"ultrafeedback_binarized", "ultrafeedback_cleaned"}
    elsewhere |= {"alpaca", "chosen_only", "completion", "messages", "orca", "sharegpt", "text"}
    shipped = {name.removesuffix("_map_fn") for name in map_fns.__all__ if name.endswith("_map_fn")}
    assert shipped == elsewhere | set(GOOD)
    assert set(ANSWERS) == set(GOOD)
    assert all(callable(function_of(name)) and inspect.getdoc(function_of(name)) for name in GOOD)
