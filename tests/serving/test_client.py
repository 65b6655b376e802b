"""The client against the application, and against answers that a good server never gives."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from xrlhf.errors import ConfigError, MissingExtraError, RewardError
from xrlhf.evaluation.scorer import Scorer
from xrlhf.serving import AsyncClient, Client, Rewards, ServerRefused
from xrlhf.structures import Group

INPUTS = [
    {"prompt": "What is 2 + 3?", "responses": ["5", "6"]},
    {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]},
]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries are written down and not made."""
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(time, "sleep", made.append)
    monkeypatch.setattr("xrlhf.serving.client.asyncio.sleep", sleep)
    return made


def answering(*answers: Any) -> tuple[Any, list[Any]]:
    """A transport that gives these answers, one after another, and the requests that it got."""
    left, requests = list(answers), []

    def handle(request: Any) -> Any:
        requests.append(request)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.MockTransport(handle), requests


def both(transport: Any, **options: Any) -> list[Callable[[], list[Rewards]]]:
    """The call by either client."""

    async def run() -> list[Rewards]:
        async with AsyncClient("http://server", transport=transport, **options) as client:
            return await client.rewards(INPUTS)

    def sync() -> list[Rewards]:
        with Client("http://server", transport=transport, **options) as client:
            return client.rewards(INPUTS)

    return [sync, lambda: asyncio.run(run())]


GOOD = {"results": [{"scores": [1.0], "num_tokens": [2], "truncated": [False]}] * 2}


def test_rewards_are_the_offline_scores(serving: Callable[..., Any], scorer: Scorer) -> None:
    app = serving(api_key="k").app

    async def run() -> tuple[list[Rewards], list[Rewards], dict[str, Any]]:
        transport = httpx.ASGITransport(app=app)
        async with AsyncClient("http://server/", api_key="k", transport=transport) as client:
            return await client.rewards(INPUTS), await client.rewards([]), await client.info()

    found, nothing, info = asyncio.run(run())
    assert nothing == []
    assert info["model"] == "tiny_reward"
    answers = tuple([{"role": "assistant", "content": text}] for text in ("5", "6"))
    group = Group([{"role": "user", "content": "What is 2 + 3?"}], answers)
    (scores,) = scorer.score([group])
    assert found[0].scores == pytest.approx(scores, abs=1e-4)
    assert found[0].truncated == [False, False]
    assert len(found[1].scores) == len(found[1].num_tokens) == 1


@pytest.mark.parametrize("which", [0, 1], ids=["sync", "async"])
def test_a_full_server_is_asked_again_when_it_says(which: int, pauses: list[float]) -> None:
    transport, requests = answering(
        httpx.Response(503, headers={"Retry-After": "7"}, json={}),
        httpx.ConnectError("refused"),
        httpx.Response(429, json={}),
        httpx.Response(200, json=GOOD),
    )
    assert both(transport, api_key="k")[which]() == [Rewards([1.0], [2], [False])] * 2
    assert len(requests) == 4
    assert requests[0].headers["authorization"] == "Bearer k"
    assert json.loads(requests[0].content) == {"inputs": INPUTS, "truncation": None}
    assert 7 <= pauses[0] <= 9
    assert 0.2 <= pauses[1] <= 0.4
    assert 0.4 <= pauses[2] <= 0.8


@pytest.mark.parametrize("which", [0, 1], ids=["sync", "async"])
def test_a_wrong_request_is_not_sent_again(which: int) -> None:
    error = {"error": {"message": "the input has 9 tokens, the limit is 8"}}
    transport, requests = answering(httpx.Response(422, json=error))
    with pytest.raises(ServerRefused, match="http://server answers 422: the input has 9 tokens") as refused:
        both(transport)[which]()
    assert refused.value.status == 422
    assert len(requests) == 1


@pytest.mark.parametrize("which", [0, 1], ids=["sync", "async"])
def test_in_the_end_it_gives_up(which: int) -> None:
    transport, requests = answering(*[httpx.ConnectError("refused")] * 3)
    with pytest.raises(RewardError, match="no answer from http://server after 3 tries: ConnectError: refused"):
        both(transport, retries=2)[which]()
    assert len(requests) == 3
    transport, _ = answering(*[httpx.Response(503, text="busy")] * 2)
    with pytest.raises(ServerRefused, match="answers 503: busy"):
        both(transport, retries=1)[which]()


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(200, text="<html>"), "no JSON"),
        (httpx.Response(200, json={"scores": []}), "'results' is missing|KeyError"),
        (httpx.Response(200, json={"results": []}), "gave 0 results for 2 inputs"),
    ],
)
def test_what_is_no_reward_server(response: Any, message: str) -> None:
    transport, _ = answering(response)
    with pytest.raises(RewardError, match=message):
        both(transport)[0]()


def test_an_address_that_is_none() -> None:
    with pytest.raises(ConfigError, match="'localhost:8000' is no address of a server"):
        Client("localhost:8000")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtraError, match=r"asking a server needs httpx.*pip install 'xrlhf\[serve\]'"):
        Client("http://server")
