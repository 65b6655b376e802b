"""Servers of every protocol: what they are asked, and what of their answers is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import byte_tokenizer

from xrlhf.errors import ConfigError, ModelError, RewardError
from xrlhf.rl.rewards import RemoteReward

Make = Callable[..., Any]


def length_of(text: str) -> float:
    return len(text) / 4


ANSWERS: dict[str, Callable[[Any], Any]] = {
    "openrlhf": lambda body: {"rewards": [length_of(t) for t in body["query"]], "scores": [], "extra_logs": {}},
    "vllm_classify": lambda body: {
        "object": "list",
        # Out of order, as the index allows.
        "data": [
            {"index": i, "label": "LABEL_0", "probs": [length_of(t)], "num_classes": 1}
            for i, t in reversed(list(enumerate(body["input"])))
        ],
    },
    "vllm_pooling": lambda body: {
        "data": [
            {"index": i, "object": "pooling", "data": [[0.0], [length_of(t)]]} for i, t in enumerate(body["input"])
        ]
    },
    "sglang_classify": lambda body: [{"embedding": [length_of(t)]} for t in body["text"]],
}


@pytest.mark.parametrize("protocol", ANSWERS)
def test_every_protocol(protocol: str, serve: Make, reply: Any, prompt_row: Make, drawn: Make) -> None:
    """Five answers in batches of two, each rewarded by the length of its text."""
    server = serve(lambda asked: reply(ANSWERS[protocol](asked.body)))
    source = RemoteReward(server.url + "/score", protocol=protocol, batch_size=2, weight=0.5)
    rows = [prompt_row("Say", 0, text=True), prompt_row("Hi", 1, text=True)]
    samples = [drawn(" a", " bcd", " ef"), drawn(" gh", "", " ijkl")]
    wanted = [[5 / 4, 7 / 4, 6 / 4], [5 / 4, 2 / 4, 7 / 4]]
    found = source.rewards(rows, samples)
    np.testing.assert_array_equal(found, np.array(wanted, np.float32))
    assert found.dtype == np.float32
    assert len(server.requests) == 3
    assert {asked.path for asked in server.requests} == {"/score"}


def bodies(server: Any) -> list[Any]:
    return [asked.body for asked in server.requests]


def test_what_openrlhf_is_asked(serve: Make, reply: Any, prompt_row: Make, drawn: Make) -> None:
    """Without a tokenizer, contents alone; the label is the column that was asked for."""
    server = serve(lambda asked: reply({"rewards": [1, [2.5]]}))
    source = RemoteReward(server.url, label_column="answer")
    row = prompt_row([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}], answer="4")
    assert source.rewards([row], [drawn("4", "5")]).tolist() == [[1.0, 2.5]]
    assert bodies(server) == [
        {
            "query": ["Be brief.\n\n2+2?\n\n4", "Be brief.\n\n2+2?\n\n5"],
            "prompts": ["Be brief.\n\n2+2?"] * 2,
            "labels": ["4", "4"],
        }
    ]


def test_the_servers_chat_template(serve: Make, reply: Any, prompt_row: Make, drawn: Make, tmp_path: Path) -> None:
    """The whole conversation is rendered, and vLLM is told to add no second BOS and no activation."""
    byte_tokenizer().save_pretrained(tmp_path)
    server = serve(lambda asked: reply(ANSWERS["vllm_classify"](asked.body)))
    source = RemoteReward(server.url, protocol="vllm_classify", model="rm", tokenizer_path=str(tmp_path))
    source.rewards([prompt_row("2+2?")], [drawn("4")])
    assert bodies(server) == [
        {
            "model": "rm",
            "input": ["<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"],
            "use_activation": False,
            "add_special_tokens": False,
        }
    ]


@pytest.mark.parametrize(
    ("protocol", "answer", "message"),
    [
        ("openrlhf", {"rewards": [1.0]}, "1 rewards came for 2 answers"),
        ("openrlhf", {"rewards": [1.0, None]}, "the reward of answer 2 to prompt 7 is null, expected a finite number"),
        ("openrlhf", {"rewards": [1.0, "3"]}, "the reward of answer 2 to prompt 7 is text, expected a finite number"),
        ("openrlhf", {"rewards": [True, 2]}, "the reward of answer 1 to prompt 7 is boolean, expected a finite number"),
        ("openrlhf", b'{"rewards": [1.0, NaN]}', "the reward of answer 2 to prompt 7 is nan, expected a finite number"),
        ("openrlhf", {"scores": [1, 2]}, "the answer has 'scores', expected 'rewards'"),
        ("openrlhf", [1, 2], "the answer is list, expected an object with 'rewards'"),
        ("openrlhf", b"", "the answer is null, expected an object with 'rewards'"),
        ("openrlhf", {"rewards": 1}, "'rewards' is number, expected a list"),
        ("openrlhf", {"rewards": [[1, 2], [3, 4]]}, "an item of 'rewards' holds 2 values, expected the one score"),
        ("vllm_classify", {"error": {"message": "x"}}, "the answer has 'error', expected 'data'"),
        ("vllm_classify", {"data": [{"probs": [0.1, 0.9]}]}, "'probs' holds 2 values, expected the one score of"),
        ("vllm_classify", {"data": [{"index": 0, "probs": [1]}] * 2}, "'data' has places that occur twice"),
        ("vllm_classify", {"data": [{"index": 0}, {"index": 1}]}, "an item of 'data' has 'index', expected 'probs'"),
        ("vllm_pooling", {"data": [{"data": "AAAA"}, {"data": "AAAA"}]}, "is text, expected a finite number"),
        ("sglang_classify", {"error": "x"}, "the answer is object, expected a list"),
        ("sglang_classify", [{"embedding": []}, {"embedding": []}], "'embedding' holds 0 values"),
    ],
)
def test_nonsense(
    protocol: str, answer: Any, message: str, serve: Make, reply: Any, prompt_row: Make, drawn: Make
) -> None:
    """One line that names the server and what was found; it is not asked again."""
    server = serve(lambda asked: reply(answer))
    source = RemoteReward(server.url, protocol=protocol, backoff=0.0)
    with pytest.raises(RewardError) as caught:
        source.rewards([prompt_row("Q", 7)], [drawn("a", "b")])
    assert str(caught.value).startswith(f"{server.url}: ")
    assert message in str(caught.value)
    assert len(server.requests) == 1


def test_a_server_that_dies_in_between(serve: Make, reply: Any, prompt_row: Make, drawn: Make) -> None:
    """The third request and all after it break the connection."""
    seen: list[int] = []

    def answer(asked: Any) -> Any:
        seen.append(1)
        return reply(ANSWERS["openrlhf"](asked.body)) if len(seen) < 3 else reply(hang_up=True)

    server = serve(answer)
    source = RemoteReward(server.url, batch_size=1, concurrency=1, retries=1, backoff=0.0)
    with pytest.raises(RewardError, match="no answer in 2 attempts"):
        source.rewards([prompt_row()], [drawn("a", "b", "c", "d", "e")])
    # Two well, two attempts of the third; the fourth at most had begun when that was given up.
    assert 4 <= len(server.requests) <= 6


def test_503_then_well(serve: Make, reply: Any, prompt_row: Make, drawn: Make) -> None:
    replies = [reply({}, 503), reply({"rewards": [1.5]})]
    server = serve(lambda asked: replies.pop(0))
    assert RemoteReward(server.url, backoff=0.0).rewards([prompt_row()], [drawn("a")]).tolist() == [[1.5]]


def test_no_answers_ask_nobody(serve: Make, reply: Any) -> None:
    server = serve(lambda asked: reply({}, 500))
    assert RemoteReward(server.url).rewards([], []).shape == (0, 0)
    assert server.requests == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"protocol": "vllm"},
            "reward 'remote': protocol 'vllm'; known: 'openrlhf', 'vllm_classify', 'vllm_pooling', 'sglang_classify'",
        ),
        ({"batch_size": 0}, "reward 'remote': batch_size must be 1 or more, got 0"),
        ({"concurrency": 0}, "reward 'remote': concurrency must be 1 or more, got 0"),
        ({"weight": float("nan")}, "the weight of reward 'remote' must be a finite number, got nan"),
        (
            {"protocol": "sglang_classify", "label_column": "answer"},
            "reward 'remote': protocol 'sglang_classify' has no place for label_column; leave it out",
        ),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RemoteReward("http://127.0.0.1:1", **options)
    assert str(caught.value) == message


def test_a_tokenizer_without_a_template(tmp_path: Path) -> None:
    byte_tokenizer(None).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no chat template to render with"):
        RemoteReward("http://127.0.0.1:1", tokenizer_path=str(tmp_path))


def test_a_template_that_refuses(prompt_row: Make, drawn: Make, tmp_path: Path) -> None:
    byte_tokenizer("{{ raise_exception('no system texts here') }}").save_pretrained(tmp_path)
    source = RemoteReward("http://127.0.0.1:1", tokenizer_path=str(tmp_path))
    with pytest.raises(RewardError, match="the chat template refuses a conversation: no system texts here"):
        source.rewards([prompt_row()], [drawn("a")])


def test_the_examples_above_are_json() -> None:
    """What stands in for a server says what such a server could say."""
    for protocol, answer in ANSWERS.items():
        body = {"query": ["a"], "input": ["a"], "text": ["a"]}
        assert json.loads(json.dumps(answer(body))), protocol
