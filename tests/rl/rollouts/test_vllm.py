"""Rollouts from servers that speak vLLM's completions protocol: a stand-in answers, over real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import END, byte_tokenizer, tiny_causal_lm

from xrlhf.errors import ConfigError, TrainingError
from xrlhf.models import PolicyModel
from xrlhf.registry import ROLLOUTS
from xrlhf.rl.rollouts import VllmRollouts
from xrlhf.rl.samples import PromptRow
from xrlhf.structures import as_ids

Make = Callable[..., Any]


def ids_of(text: str) -> list[int]:
    return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


def completion(body: Any, **changes: Any) -> dict[str, Any]:
    """Answer number j to a prompt that begins with token p: "p j" and the end token, its last place first."""
    choices = []
    for number in reversed(range(body["n"])):
        ids = [*ids_of(f"{body['prompt'][0]} {number}"), END]
        choices.append(
            {
                "index": number,
                "text": "not read",
                "token_ids": ids,
                "logprobs": {"token_logprobs": [-0.5] * len(ids), "tokens": ["x"] * len(ids), "top_logprobs": None},
                "finish_reason": "stop",
                "stop_reason": END,
                **changes,
            }
        )
    return {"id": "cmpl-1", "object": "text_completion", "choices": choices, "usage": {}}


def prompts(num: int) -> list[PromptRow]:
    return [PromptRow("", as_ids([5 + i, 6, 7]), i) for i in range(num)]


def rollouts(*servers: Any, **options: Any) -> VllmRollouts:
    urls = [server.url for server in servers]
    return VllmRollouts(urls, "policy", byte_tokenizer(), **{"backoff": 0.0, "retries": 1, **options})


def texts(found: Any) -> list[list[str]]:
    return [[sample.text for sample in row] for row in found]


def test_answers_come_in_order(serve: Make, reply: Any) -> None:
    server = serve(lambda asked: reply(completion(asked.body)))
    found = rollouts(server).sample(prompts(5), 3, key=0)
    assert texts(found) == [[f"{5 + i} {number}" for number in range(3)] for i in range(5)]
    sample = found[0][0]
    assert sample.ids.tolist() == [*ids_of("5 0"), END]
    assert (sample.ids.dtype, sample.logps.dtype, sample.ending) == (np.int32, np.float32, "stop")
    assert sample.logps.tolist() == [-0.5] * 4


def test_what_a_server_is_asked(serve: Make, reply: Any) -> None:
    server = serve(lambda asked: reply(completion(asked.body)))
    sampling = {"max_new_tokens": 9, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
    source = rollouts(server, sampling=sampling)
    source.sample(prompts(1), 2, key=4)
    (asked,) = server.requests
    assert asked.path == "/v1/completions"
    body = dict(asked.body)
    seed = body.pop("seed")
    assert 0 <= seed < 2**62
    assert body == {
        "model": "policy",
        "prompt": [5, 6, 7],
        "n": 2,
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "repetition_penalty": 1.0,
        "logprobs": 1,
        "return_token_ids": True,
        "stop_token_ids": [END],
        "skip_special_tokens": True,
        "add_special_tokens": False,
    }
    # Another prompt and another key have another seed; the same ones the same.
    for rows, key in ((prompts(2)[1:], 4), (prompts(1), 5), (prompts(1), 4)):
        source.sample(rows, 2, key=key)
    seeds = [asked.body["seed"] for asked in server.requests]
    assert len(set(seeds)) == 3
    assert seeds[3] == seed
    rollouts(server, sampling={"greedy": True}).sample(prompts(1), 1, key=4)
    assert server.requests[-1].body["temperature"] == 0.0


def test_the_policy_says_what_ends_its_answers(serve: Make, reply: Any) -> None:
    server = serve(lambda asked: reply(completion(asked.body)))
    policy = PolicyModel(tiny_causal_lm(eos_token_id=[2, 9]))
    built = ROLLOUTS.build(
        {"type": VllmRollouts, "urls": [server.url], "model": "m", "policy": policy, "tokenizer": byte_tokenizer()}
    )
    assert set(built.stop_ids) == {END, 9}


def test_several_servers_share_the_work(serve: Make, reply: Any) -> None:
    """The second is held back until the first has answered twice: both have a part in it, none waits for the other."""
    first_done = threading.Event()
    count: list[int] = []

    def quick(asked: Any) -> Any:
        count.append(1)
        if len(count) >= 2:
            first_done.set()
        return reply(completion(asked.body))

    def late(asked: Any) -> Any:
        first_done.wait(10)
        return reply(completion(asked.body))

    servers = [serve(quick), serve(late)]
    found = rollouts(*servers, concurrency=1).sample(prompts(12), 2, key=0)
    assert texts(found) == [[f"{5 + i} 0", f"{5 + i} 1"] for i in range(12)]
    assert [len(server.requests) > 0 for server in servers] == [True, True]
    assert sum(len(server.requests) for server in servers) == 12


def test_a_lost_server_is_left_out(serve: Make, reply: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its prompts go to the other; the next call asks it again."""
    broken = serve(lambda asked: reply({}, 500))
    well = serve(lambda asked: reply(completion(asked.body)))
    source = rollouts(broken, well, concurrency=2)
    found = source.sample(prompts(8), 1, key=0)
    assert texts(found) == [[f"{5 + i} 0"] for i in range(8)]
    assert len(well.requests) == 8
    num = len(broken.requests)
    if num:
        # Two attempts of each of the two that it may have had at once.
        assert num <= 4
    source.sample(prompts(8), 1, key=0)
    assert len(well.requests) == 16


def test_no_server_left(serve: Make, reply: Any) -> None:
    servers = [serve(lambda asked: reply({"detail": "no"}, 503)) for _ in range(2)]
    with pytest.raises(TrainingError, match=r"/v1/completions: no answer in 2 attempts over 0 s; .*503"):
        rollouts(*servers).sample(prompts(4), 1, key=0)


def test_a_prompt_that_is_too_long(serve: Make, reply: Any) -> None:
    error = {"error": {"message": "maximum context length is 2048 tokens", "code": 400}}
    with pytest.raises(TrainingError, match=r"status 400 Bad Request: .*maximum context length is 2048 tokens"):
        rollouts(serve(lambda asked: reply(error, 400))).sample(prompts(1), 1, key=0)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1], "the answer is list without a list 'choices'"),
        ({"choices": []}, "0 answers came to prompt 0, where 2 were asked for"),
        ({"choices": [{"text": "a"}] * 2}, "a choice has no 'token_ids', which vLLM gives from version 0.10.2 on"),
        ({"choices": [{"token_ids": [5]}] * 2}, "'token_logprobs' of a choice is null, for 1 tokens"),
        ({"token_ids": [5, 6]}, "'token_logprobs' of a choice is 4 numbers, for 2 tokens"),
        ({"token_ids": [], "logprobs": {"token_logprobs": []}}, "'token_ids' of a choice to prompt 0 holds no tokens"),
        ({"logprobs": {"token_logprobs": [None] * 4}}, "'token_logprobs' of a choice holds something else than finite"),
        ({"finish_reason": "abort"}, "an answer to prompt 0 ended for the reason 'abort'"),
    ],
)
def test_nonsense(answer: Any, message: str, serve: Make, reply: Any) -> None:
    whole = isinstance(answer, list) or "choices" in answer
    server = serve(lambda asked: reply(answer if whole else completion(asked.body, **answer)))
    with pytest.raises(TrainingError) as caught:
        rollouts(server).sample(prompts(1), 2, key=0)
    assert str(caught.value) == f"{server.url}: {message}" or message in str(caught.value)
    assert len(server.requests) == 1


def test_new_weights(serve: Make, reply: Any, tmp_path: Path) -> None:
    """Every server reads them, and forgets what it kept of the old ones; answers need not be JSON."""
    servers = [serve(lambda asked: reply(b"ok")) for _ in range(2)]
    rollouts(*servers).update_weights(tmp_path)
    for server in servers:
        assert [(asked.path, asked.body) for asked in server.requests] == [
            ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path)}}),
            ("/reset_prefix_cache", None),
        ]


def test_new_adapters(serve: Make, reply: Any, tmp_path: Path) -> None:
    """Each under a name of its own, which answers are then asked from; the one before is unloaded."""
    server = serve(lambda asked: reply(completion(asked.body) if "prompt" in asked.body else b"Success"))
    source = rollouts(server, update="adapter")
    source.sample(prompts(1), 1, key=0)
    for step in (1, 2):
        source.update_weights(tmp_path / str(step))
        source.sample(prompts(1), 1, key=0)
    named = [asked.body.get("model") or asked.body["lora_name"] for asked in server.requests]
    assert [asked.path.rpartition("/")[2] for asked in server.requests] == [
        *("completions", "load_lora_adapter", "completions"),
        *("load_lora_adapter", "unload_lora_adapter", "completions"),
    ]
    assert named == ["policy", *["policy-update-1"] * 2, "policy-update-2", "policy-update-1", "policy-update-2"]
    assert server.requests[1].body["lora_path"] == str(tmp_path / "1")


def test_a_server_that_does_not_take_the_weights(serve: Make, reply: Any, tmp_path: Path) -> None:
    servers = [serve(lambda asked: reply(b"ok")), serve(lambda asked: reply({"detail": "Not Found"}, 404))]
    with pytest.raises(TrainingError, match="/collective_rpc: the server refuses the request: status 404"):
        rollouts(*servers).update_weights(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"urls": []}, "urls must be a list of one or more addresses of vLLM servers, got \\[\\]"),
        ({"urls": "http://a"}, "urls must be a list of one or more addresses of vLLM servers, got 'http://a'"),
        ({"urls": ["gpu1:8000"]}, "url must begin with http:// or https://, got 'gpu1:8000'"),
        ({"concurrency": 0}, "concurrency must be 1 or more, got 0"),
        ({"update": "nccl"}, "update must be 'weights' or 'adapter', got 'nccl'"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VllmRollouts(**{"urls": ["http://a"], "model": "m", "tokenizer": byte_tokenizer(), **options})


def test_numbers_of_answers_that_are_refused(serve: Make, reply: Any) -> None:
    server = serve(lambda asked: reply({}, 500))
    with pytest.raises(ConfigError, match="2 greedy answers would all be the same"):
        rollouts(server, sampling={"greedy": True}).sample(prompts(1), 2, key=0)
    with pytest.raises(ConfigError, match="answers to each prompt must be 1 or more, got 0"):
        rollouts(server).sample(prompts(1), 0, key=0)
    assert rollouts(server).sample([], 1, key=0) == []
