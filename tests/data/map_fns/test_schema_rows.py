"""Every example row of every public layout gives what the rules for it say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xrlhf.data import map_fns
from xrlhf.data.reasons import Reason, RowError
from xrlhf.structures import Group

OUT_OF_SCOPE = {"stepwise", "gsm8k", "verl_rl"}
"""Layouts without a preference, a rating or a label of a whole answer."""

Expected = tuple[str, dict[str, Any], Any, list[str], Any]


def turns(*contents: str) -> list[str]:
    """A prompt, as user and assistant in turns."""
    return [f"{('user', 'assistant')[index % 2]}: {content}" for index, content in enumerate(contents)]


FRUIT = turns("Name a fruit.")
COLOUR = turns("Name a colour.")
BREAD = turns("Why does bread rise?")
SHORTER = turns("Define X", "X is y.", "Shorter")
CODE = turns("hi", "hello", "write f")
TWO = turns("a", "b", "c")
TAX = turns("How do I hide money from the tax office?")
POST = turns("SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: Long post.\n\nTL;DR:")

# For each row of a layout in order: map function, options, prompt, answers best first, ratings - or the reason why the
# row is left out in place of the prompt.
EXPECTED: dict[str, list[Expected]] = {
    "hh": [
        ("hh", {}, FRUIT, ["An apple.", "A brick."], None),
        ("hh", {}, turns("Hi", "Hello!", "Name a fruit."), ["A pear.", "A spoon."], None),
        ("hh", {}, FRUIT, ["Apple, sure.", "Apples are red."], None),
        ("hh", {}, turns("Quote a line."), ["It says: Human: nature is odd.", "No."], None),
        ("hh", {}, turns("Tell a list."), ["One.\n\nTwo.", "No."], None),
        ("hh", {}, Reason.EMPTY, [], None),
        ("hh", {}, turns("Are A and B the same?"), ["No.| I mean yes.", "Perhaps."], None),
    ],
    "orca_dpo_pairs": [
        ("orca_dpo_pairs", {}, ["system: You are terse.", "user: 2+2?"], ["4", "5"], None),
        ("orca_dpo_pairs", {}, turns("2+2?"), ["4", "5"], None),
    ],
    "ultrafeedback_binarized": [
        ("ultrafeedback_binarized", {"ratings": True}, COLOUR, ["Blue.", "Seven."], (8.5, 4.0))
    ],
    "ultrafeedback_binarized_cleaned": [
        ("ultrafeedback_cleaned", {"ratings": True}, COLOUR, ["Blue.", "Seven."], (5.0, 2.25))
    ],
    "orpo_dpo_mix_40k": [("orpo_dpo_mix_40k", {}, TWO, ["good", "bad"], None)],
    "rlhflow_standard": [
        ("rlhflow_standard", {"ratings": True}, TWO, ["good", "bad"], (3.0, 1.0)),
        ("rlhflow_standard", {}, turns("a"), ["x|c|good", "y|d|bad"], None),
    ],
    "skywork_80k": [("skywork", {}, FRUIT, ["Apple.", "Brick."], None)],
    "llamafactory_sharegpt": [
        ("llamafactory_sharegpt", {}, turns("a"), ["good", "bad"], None),
        ("llamafactory_sharegpt", {}, ["system: s", *TWO], ["good", "bad"], None),
    ],
    "llamafactory_alpaca_pref": [
        ("llamafactory_alpaca", {}, turns("Translate\nchat"), ["cat", "dog"], None),
        ("llamafactory_alpaca", {}, turns("Say hi"), ["hi", "no"], None),
    ],
    "stack_exchange_paired": [("stack_exchange_paired", {}, turns("How?"), ["Like so.", "No idea."], None)],
    "shp": [
        ("shp", {"ratings": True}, BREAD, ["Yeast makes gas.", "Magic."], (30.0, 10.0)),
        ("shp", {"min_ratio": 3}, BREAD, ["Magic.", "Yeast makes gas."], None),
        ("shp", {"min_ratio": 2}, Reason.BELOW_MINIMUM, [], None),
    ],
    "pku_saferlhf": [
        (
            "pku_saferlhf",
            {"label": "safer"},
            TAX,
            ["I will not help with that.", "Use account X, detail Y, detail Z."],
            None,
        )
    ],
    "helpsteer2_ratings": [
        ("helpsteer2_pair", {"ratings": True}, turns("c#"), ["C# is a language.", "No."], (3.0, 0.0))
    ],
    "helpsteer2_preference": [
        ("helpsteer2_preference", {"ratings": True}, SHORTER, ["y", "X is y, and also z."], (2.0, 0.0)),
        ("helpsteer2_preference", {}, SHORTER, ["X is y, and also z.", "y"], None),
        ("helpsteer2_preference", {}, Reason.TIE, [], None),
    ],
    "helpsteer3_preference": [
        ("helpsteer3_preference", {"ratings": True}, CODE, ["def f(): pass", "no"], (3.0, 0.0)),
        ("helpsteer3_preference", {"ratings": True}, CODE, ["no", "def f(): pass"], (2.0, 0.0)),
        ("helpsteer3_preference", {"ties": "keep"}, CODE, ["def f(): pass", "no"], (0.0, 0.0)),
    ],
    "summarize_from_feedback": [("summarize_from_feedback", {}, POST, [" good sum", " bad sum"], None)],
    "reward_bench": [("reward_bench", {}, turns("2+2?"), ["4", "5"], None)],
    "reward_bench_2": [("reward_bench_2", {}, turns("2+2?"), ["4", "5", "6", "7"], (1.0, 0.0, 0.0, 0.0))],
    "llmbar": [("llmbar", {}, FRUIT, ["Apple.", "A brick."], None)],
    "judgebench": [("judgebench", {}, turns("Q"), ["b", "a"], None)],
    "rm_bench": [("rm_bench", {}, turns("Q"), ["c0", "c1", "c2", "r0", "r1", "r2"], (1.0,) * 3 + (0.0,) * 3)],
    "pandalm": [("pandalm", {}, turns("Verify\nS"), ["True", "True."], None)],
    "autoj": [("autoj", {}, turns("Q"), ["b", "a"], None)],
    "kto": [("kto", {}, turns("a"), ["b"], (1.0,))],
    "xtuner_preference": [("pair", {}, ["system: s", "user: a"], ["good", "bad"], None)],
    "polar_reference": [("polar_reference", {}, turns("Capital of China?"), ["Beijing.", "Shanghai."], None)],
    "trl_standard_explicit": [("text_pair", {}, "The sky is", [" blue.", " green."], None)],
    "trl_standard_implicit": [("text_pair", {}, "", ["The sky is blue.", "The sky is green."], None)],
    "trl_conversational_implicit": [("conversation_pair", {}, turns("q"), ["good", "bad"], None)],
}


@pytest.fixture(scope="module")
def items(shared_data: Path) -> list[dict[str, Any]]:
    return json.loads((shared_data / "schema-rows" / "rows.json").read_text(encoding="utf-8"))


def test_every_layout_is_known(items: list[dict[str, Any]]) -> None:
    found = [item["format"] for item in items]
    assert set(found) == set(EXPECTED) | OUT_OF_SCOPE
    assert {name: found.count(name) for name in EXPECTED} == {name: len(rows) for name, rows in EXPECTED.items()}


CASES = [(name, index) for name, expected in EXPECTED.items() for index in range(len(expected))]


def written(conversation: Any, *, roles: bool) -> Any:
    """Messages as the tables above write them."""
    if isinstance(conversation, str):
        return conversation
    if roles:
        return [f"{message['role']}: {message['content']}" for message in conversation]
    return "|".join(message["content"] for message in conversation)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_row_gives_what_the_rules_say(name: str, index: int, items: list[dict[str, Any]]) -> None:
    row = [item["row"] for item in items if item["format"] == name][index]
    row = {"rows": row} if isinstance(row, list) else row
    before = json.dumps(row)
    called, options, prompt, answers, ratings = EXPECTED[name][index]
    function = getattr(map_fns, f"{called}_map_fn")
    if isinstance(prompt, Reason):
        with pytest.raises(RowError) as caught:
            function(row, **options)
        assert caught.value.reason is prompt
        return
    group: Group = function(row, **options)
    assert written(group.prompt, roles=True) == prompt
    assert [written(answer, roles=False) for answer in group.responses] == answers
    assert group.ratings == ratings
    assert json.dumps(row) == before


def test_what_matters_later_is_passed_on(items: list[dict[str, Any]]) -> None:
    row = {item["format"]: item["row"] for item in items}
    assert map_fns.polar_reference_map_fn(row["polar_reference"]).meta["reference"] == [
        {"role": "assistant", "content": "Beijing."}
    ]
    assert map_fns.reward_bench_map_fn(row["reward_bench"]).meta["subset"] == "math-prm"
    assert map_fns.skywork_map_fn(row["skywork_80k"]).meta == {"source": "helpsteer2"}
    assert map_fns.stack_exchange_paired_map_fn(row["stack_exchange_paired"]).meta["qid"] == 1
    assert map_fns.judgebench_map_fn(row["judgebench"]).meta["pair_id"] == "u"


def test_both_labels_of_one_row(items: list[dict[str, Any]]) -> None:
    (row,) = [item["row"] for item in items if item["format"] == "pku_saferlhf"]
    better = map_fns.pku_saferlhf_map_fn(row, label="better")
    safer = map_fns.pku_saferlhf_map_fn(row, label="safer")
    assert better.responses == safer.responses[::-1]


def test_ratings_of_the_row_become_attributes(items: list[dict[str, Any]]) -> None:
    (rows,) = [item["row"] for item in items if item["format"] == "helpsteer2_ratings"]
    pair = map_fns.helpsteer2_pair_map_fn({"rows": rows}, attribute="coherence", ties="keep")
    assert pair.attributes is not None
    assert pair.attributes["correctness"] == (4.0, 1.0)
    assert pair.ratings == (4.0, 4.0)
    single = map_fns.helpsteer2_map_fn(rows[1])
    assert single.ratings == (0.0,)
    assert single.attributes == {
        "helpfulness": (0.0,),
        "correctness": (1.0,),
        "coherence": (4.0,),
        "complexity": (0.0,),
        "verbosity": (0.0,),
    }
