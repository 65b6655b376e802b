"""What is asked again, what is not, and what is said when nothing helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xrlhf.errors import ConfigError, RewardError, TrainingError
from xrlhf.rl.http import JsonServer


def test_json_goes_there_and_back(serve: Callable[..., Any], reply: Any) -> None:
    server = serve(lambda asked: reply({"twice": asked.body["n"] * 2}))
    assert JsonServer(server.url + "/").post("/double", {"n": 21}) == {"twice": 42}
    assert server.requests[0].path == "/double"
    assert server.requests[0].headers["Content-Type"] == "application/json"


def test_an_empty_request_and_an_empty_answer(serve: Callable[..., Any], reply: Any) -> None:
    server = serve(lambda asked: reply(b""))
    assert JsonServer(server.url).post("/pause?mode=wait") is None
    assert (server.requests[0].path, server.requests[0].body) == ("/pause?mode=wait", None)


def test_503_then_well(serve: Callable[..., Any], reply: Any) -> None:
    """Waits double from one attempt to the next; what the server asks for counts where it is longer."""
    replies = [reply({}, 503), reply({}, 503, {"Retry-After": "7"}), reply({}, 429), reply({"ok": 1})]
    server = serve(lambda asked: replies.pop(0))
    waits: list[float] = []
    assert JsonServer(server.url, backoff=0.5, sleep=waits.append).post("", {}) == {"ok": 1}
    assert waits == [0.5, 7.0, 2.0]


def test_a_connection_that_breaks_is_tried_again(serve: Callable[..., Any], reply: Any) -> None:
    replies = [reply(hang_up=True), reply(b'{"half":', headers={"Content-Length": "100"}), reply({"ok": 1})]
    server = serve(lambda asked: replies.pop(0))
    assert JsonServer(server.url, sleep=lambda _: None).post("", {}) == {"ok": 1}
    assert len(server.requests) == 3


def test_a_server_that_stays_broken(serve: Callable[..., Any], reply: Any) -> None:
    server = serve(lambda asked: reply({"detail": "loading\nthe model"}, 503))
    with pytest.raises(RewardError) as caught:
        JsonServer(server.url, retries=2, error=RewardError, sleep=lambda _: None).post("/get_reward", {})
    assert str(caught.value) == (
        f"{server.url}/get_reward: no answer in 3 attempts over 0 s; the last one: status 503 Service Unavailable: "
        '{"detail": "loading\\nthe model"}'
    )
    assert len(server.requests) == 3


def test_a_server_that_is_gone(serve: Callable[..., Any], reply: Any) -> None:
    server = serve(lambda asked: reply({}))
    server.stop()
    with pytest.raises(TrainingError, match=r"no answer in 1 attempt over 0 s; the last one: .*refused"):
        JsonServer(server.url, retries=0).post("", {})
    server.stop = lambda: None


def test_a_slow_server(serve: Callable[..., Any], reply: Any) -> None:
    server = serve(lambda asked: reply({}, delay=1.0))
    with pytest.raises(TrainingError, match=r"no answer in 2 attempts .*: nothing came within 0.2 s"):
        JsonServer(server.url, timeout=0.2, retries=1, sleep=lambda _: None).post("", {})


def test_a_request_that_is_refused_is_not_made_again(serve: Callable[..., Any], reply: Any) -> None:
    server = serve(lambda asked: reply({"error": {"message": "no such model"}}, 404))
    with pytest.raises(TrainingError) as caught:
        JsonServer(server.url).post("", {})
    assert "the server refuses the request: status 404 Not Found: " in str(caught.value)
    assert "no such model" in str(caught.value)
    assert len(server.requests) == 1


def test_an_answer_that_is_no_json(serve: Callable[..., Any], reply: Any) -> None:
    server = serve(lambda asked: reply(b"<html>It works!</html>" + b"x" * 500))
    with pytest.raises(TrainingError, match=r"the answer is no JSON: <html>It works!</html>x+\.\.\.$"):
        JsonServer(server.url).post("", {})


def test_a_key_comes_from_the_environment(
    serve: Callable[..., Any], reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda asked: reply({}, 403))
    monkeypatch.setenv("MY_KEY", "s3cret")
    with pytest.raises(TrainingError) as caught:
        JsonServer(server.url, api_key_env="MY_KEY").post("", {})
    assert server.requests[0].headers["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("localhost:8000", {}, "url must begin with http:// or https://, got 'localhost:8000'"),
        ("http://a", {"timeout": 0}, "http://a: timeout must be above 0 seconds, got 0"),
        ("http://a", {"retries": -1}, "http://a: retries must be 0 or more, got -1"),
        ("http://a", {"backoff": -1}, "http://a: backoff must be 0 seconds or more, got -1"),
        (
            "http://a",
            {"api_key_env": "XRLHF_NO_SUCH"},
            "http://a: the key is to come from the environment variable XRLHF_NO_SUCH, which is not set",
        ),
    ],
)
def test_options_that_are_refused(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JsonServer(url, **options)
    assert str(caught.value) == message
