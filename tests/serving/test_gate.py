"""What every request passes: keys, limits, readiness, ids, counts; and that no text of a request is ever logged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from xrlhf.serving.model import ServedModel
from xrlhf.serving.protocols import ROUTES
from xrlhf.serving.settings import Limits, ModelSettings, ServerSettings

ROW = {"inputs": [{"prompt": "What?", "responses": ["a", "b"]}]}
KEY = "sesame-7"


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {KEY}", KEY, "Bearer", f"Bearer {KEY}x"])
def test_without_the_key_nothing_is_told(serving: Callable[..., Any], header: str | None) -> None:
    client = serving(api_key=KEY)
    headers = {} if header is None else {"Authorization": header}
    for path in [*ROUTES, "/info", "/metrics", "/openapi.json", "/no-such-route"]:
        method = "POST" if path in ROUTES else "GET"
        response = client.request(method, path, headers=headers, json=ROW if method == "POST" else None)
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"
        assert KEY not in response.text


def test_with_the_key_everything_is(serving: Callable[..., Any]) -> None:
    client = serving(api_key=KEY)
    for scheme in ("Bearer", "bearer"):
        response = client.post("/v1/rewards", json=ROW, headers={"Authorization": f"{scheme} {KEY}"})
        assert response.status_code == 200
    assert client.get("/info", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_the_page_needs_no_key_and_does_not_name_the_model(serving: Callable[..., Any]) -> None:
    with_key = serving(api_key=KEY).get("/")
    assert with_key.status_code == 200
    assert 'id="key"' in with_key.text
    assert KEY not in with_key.text
    assert "tiny_reward" not in with_key.text
    without = serving().get("/")
    assert "<h1>tiny_reward</h1>" in without.text
    assert 'id="key"' not in without.text
    assert "default-src 'none'" in without.headers["content-security-policy"]
    assert serving(loaded=False).get("/").status_code == 503


def test_health_and_readiness_need_no_key(serving: Callable[..., Any]) -> None:
    client = serving(api_key=KEY)
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}


def test_a_server_without_its_model_is_healthy_but_not_ready(serving: Callable[..., Any]) -> None:
    client = serving(loaded=False)
    assert client.get("/health").status_code == 200
    for response in (client.get("/ready"), client.get("/info"), client.post("/v1/rewards", json=ROW)):
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
    assert client.post("/predict", json={"inputs": "a"}).json() == {
        "error": "the model is being loaded",
        "error_type": "Unhealthy",
    }


def test_a_server_that_ends_takes_nothing_new(serving: Callable[..., Any]) -> None:
    client = serving()
    client.service.draining = True
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 503
    response = client.post("/v1/rewards", json=ROW)
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "the server is ending"


def test_a_server_whose_thread_has_ended_is_not_healthy(serving: Callable[..., Any]) -> None:
    client = serving()
    client.service._batcher.stop(10)
    assert client.get("/health").status_code == 503
    assert client.get("/ready").status_code == 503


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large(serving: Callable[..., Any], announced: bool) -> None:
    client = serving(max_body=1000)

    def pieces() -> Any:
        yield b"x" * 600
        yield b"x" * 600

    content: Any = b"x" * 1200 if announced else pieces()
    response = client.post("/v1/rewards", content=content)
    assert response.status_code == 413
    assert response.json()["error"]["message"] == "the body is larger than 1000 bytes"
    assert client.post("/predict", content=b"x" * 1200).json()["error_type"] == "Validation"


def test_a_body_that_does_not_come(serving: Callable[..., Any]) -> None:
    """The application by itself, since test clients send everything at once."""
    client = serving(body_seconds=0.1)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/rewards", "headers": [], "query_string": b""}
    asyncio.run(client.app(scope, receive, send))
    assert sent[0]["status"] == 408


def test_a_client_that_leaves_while_it_sends(serving: Callable[..., Any]) -> None:
    client = serving()
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/rewards", "headers": [], "query_string": b""}
    asyncio.run(client.app(scope, receive, send))
    assert sent == []
    assert 'xrlhf_requests_total{route="/v1/rewards",status="499"} 1.0' in client.get("/metrics").text


def test_too_many_inputs(serving: Callable[..., Any]) -> None:
    client = serving(max_inputs=2)
    assert client.post("/v1/rewards", json=ROW).status_code == 200
    body = {"inputs": [{"prompt": "?", "responses": ["a", "b", "c"]}]}
    response = client.post("/v1/rewards", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["message"] == "3 conversations in one request, the limit is 2"
    assert client.post("/classify", json={"input": ["a"] * 3}).status_code == 400


@pytest.mark.parametrize("status", [429, 503])
def test_a_full_server(serving: Callable[..., Any], status: int) -> None:
    """The queue has room for three, and one request with two is in it."""
    client = serving(max_queue=3, max_inputs=3, overload_status=status, retry_after=7)
    client.service._let_in(2)
    assert client.post("/get_reward", json={"query": ["a"]}).status_code == 200
    response = client.post("/v1/rewards", json=ROW)
    assert response.status_code == status
    assert response.headers["retry-after"] == "7"
    assert "2 conversations are in it and 2 more would be above its limit of 3" in response.json()["error"]["message"]
    assert client.post("/predict", json={"inputs": [["a"], ["b"]]}).json()["error_type"] == "Overloaded"


def test_what_was_let_in_is_let_out_again(serving: Callable[..., Any]) -> None:
    client = serving(max_queue=2, max_inputs=2)
    for _ in range(3):
        assert client.post("/v1/rewards", json=ROW).status_code == 200
        assert client.post("/classify", json={"input": "x" * 400}).status_code == 400
    assert client.service.num_running == 0
    assert "xrlhf_conversations_in_server 0.0" in client.get("/metrics").text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "body: Field required"),
        (b"{", "JSON decode error"),
        (b"[1]", "body"),
        (b"\xff\xfe", "JSON decode error"),
        (b"[" * 100_000, ""),
        (b'{"inputs": [{"text": "\\ud800"}]}', "half a surrogate pair"),
        (b'{"inputs": NaN}', "inputs"),
    ],
)
def test_bodies_that_are_no_request(serving: Callable[..., Any], content: bytes, message: str) -> None:
    response = serving().post("/v1/rewards", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert message in response.json()["error"]["message"]


def test_half_a_surrogate_pair_in_raw_text(serving: Callable[..., Any]) -> None:
    body = b'{"query": "a", "documents": ["\\ud800"]}'
    response = serving().post("/rerank", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    body = b'{"query": ["\\ud800"]}'
    response = serving().post("/get_reward", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/rewards", 405)])
def test_no_such_route(serving: Callable[..., Any], method: str, path: str, status: int) -> None:
    response = serving().request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == status


def test_the_id_of_a_request_comes_back(serving: Callable[..., Any]) -> None:
    client = serving()
    assert client.get("/health", headers={"x-request-id": "abc-7"}).headers["x-request-id"] == "abc-7"
    made = client.get("/health").headers["x-request-id"]
    assert len(made) == 32
    assert client.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"
    assert len(client.get("/health", headers={"x-request-id": "x" * 200}).headers["x-request-id"]) == 32
    answer = client.post("/v1/rewards", json=ROW, headers={"x-request-id": "abc-8"})
    assert answer.json()["id"] == "rewards-abc-8"


def test_no_other_site_may_ask(serving: Callable[..., Any]) -> None:
    response = serving().get("/health", headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_no_text_of_a_request_is_logged(
    serving: Callable[..., Any], scorer: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of a good request, nor a wrong one, nor one at which the server itself fails."""
    caplog.set_level(logging.DEBUG)
    client = serving()
    secret = "the-secret-of-the-prompt"
    client.post("/v1/rewards", json={"inputs": [{"text": secret}]})
    client.post("/v1/rewards", json={"inputs": [{"text": secret * 50}]})
    client.post("/v1/rewards", json={"inputs": secret})
    client.post("/v1/rewards", content=secret.encode())

    def fail(*arguments: Any) -> None:
        raise RuntimeError(f"what is {arguments}?")

    monkeypatch.setattr(client.service.model.encoder, "encode", fail)
    response = client.post("/v1/rewards", json={"inputs": [{"text": secret}]})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "internal error"
    assert secret not in caplog.text
    assert "RuntimeError" in caplog.text


def test_health_answers_while_the_model_computes(serving: Callable[..., Any], scorer: Any) -> None:
    """And what the model works at is on no thread of the event loop."""
    import threading

    served = ServedModel(scorer, ModelSettings(path="m"))
    compute, threads = served.compute, []

    def slow(groups: Any) -> Any:
        threads.append(threading.current_thread().name)
        time.sleep(0.5)
        return compute(groups)

    served.compute = slow  # type: ignore[method-assign]
    with serving(model=served) as client:
        asking = threading.Thread(target=lambda: client.post("/v1/rewards", json=ROW))
        asking.start()
        while not threads:
            time.sleep(0.005)
        began = time.perf_counter()
        assert client.get("/health").status_code == 200
        assert time.perf_counter() - began < 0.3
        asking.join()
    assert threads == ["xrlhf-scores"]


def test_a_client_that_leaves_is_not_waited_for(serving: Callable[..., Any], scorer: Any) -> None:
    """Three requests; the first is being computed when the second one's client leaves, and only two are computed."""
    import json
    import threading

    served = ServedModel(scorer, ModelSettings(path="m"))
    compute, seen, go_on = served.compute, [], threading.Event()

    def slow(groups: Any) -> Any:
        seen.append(sum(len(group.response_ids) for group in groups))
        assert go_on.wait(20)
        return compute(groups)

    served.compute = slow  # type: ignore[method-assign]
    client = serving(model=served)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/rewards",
        "raw_path": b"/v1/rewards",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
        "root_path": "",
    }

    async def ask(text: str, leaves: asyncio.Event) -> int:
        body = json.dumps({"inputs": [{"text": text}]}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        statuses = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await client.app(dict(scope), receive, send)
        return int(statuses[0])

    async def run() -> list[int]:
        stay, leave = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(ask("one", stay))
        while not seen:
            await asyncio.sleep(0.005)
        second, third = asyncio.create_task(ask("two", leave)), asyncio.create_task(ask("three", stay))
        await asyncio.sleep(0.1)
        leave.set()
        status = await second
        assert client.service.num_running == 2
        go_on.set()
        return [await first, status, await third]

    assert asyncio.run(run()) == [200, 499, 200]
    assert seen == [1, 1]
    assert "xrlhf_abandoned_requests_total 1.0" in client.get("/metrics").text


def test_a_model_that_fails(serving: Callable[..., Any], scorer: Any) -> None:
    """Each protocol says it its own way."""
    served = ServedModel(scorer, ModelSettings(path="m"))
    served.compute = lambda groups: [[float("nan")] * len(group.response_ids) for group in groups]  # type: ignore[method-assign]
    client = serving(model=served)
    for path, body, status in (
        ("/v1/rewards", ROW, 500),
        ("/get_reward", {"query": ["a"]}, 500),
        ("/classify", {"input": "a"}, 500),
        ("/predict", {"inputs": "a"}, 424),
    ):
        response = client.post(path, json=body)
        assert response.status_code == status
        assert "not finite" in response.text
        assert "NaN" not in response.text


def test_metrics_count(serving: Callable[..., Any]) -> None:
    client = serving()
    client.post("/v1/rewards", json=ROW)
    client.post("/v1/rewards", json={})
    client.get("/nowhere")
    text = client.get("/metrics").text
    for line in (
        'xrlhf_requests_total{route="/v1/rewards",status="200"} 1.0',
        'xrlhf_requests_total{route="/v1/rewards",status="422"} 1.0',
        'xrlhf_requests_total{route="other",status="404"} 1.0',
        "xrlhf_conversations_total 2.0",
        "xrlhf_batch_seconds_count 1.0",
        "xrlhf_queue_seconds_count 1.0",
    ):
        assert line in text


def test_info(serving: Callable[..., Any]) -> None:
    info = serving(max_queue=50, max_inputs=20).get("/info").json()
    assert info["model"] == "tiny_reward"
    assert info["max_length"] == 256
    assert info["dtype"] == "float32"
    assert info["limits"]["max_queue"] == 50
    assert info["activation"]["/get_reward"] == "none"
    assert info["activation"]["/predict"] == "sigmoid"
    assert info["problem_type"] == "regression"
    assert "/" not in info["model"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Limits(max_queue=0), "--max-queue must be at least 1, got 0"),
        (lambda: Limits(max_queue=3, max_inputs=4), "--max-inputs 4 is more than --max-queue 3"),
        (lambda: Limits(overload_status=500), "--overload-status must be 429 or 503, got 500"),  # type: ignore[arg-type]
        (lambda: Limits(drain_seconds=-1), "--drain-seconds must not be negative, got -1"),
        (lambda: ModelSettings(path="m", token_budget=0), "--token-budget must be at least 1, got 0"),
        (lambda: ServerSettings(ModelSettings(path="m"), port=70000), "--port must be from 0 to 65535, got 70000"),
        (lambda: ServerSettings(ModelSettings(path="m"), workers=0), "--workers must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense(make: Callable[[], Any], message: str) -> None:
    from xrlhf.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        make()


def test_settings_do_not_show_the_key() -> None:
    assert KEY not in repr(ServerSettings(ModelSettings(path="m"), api_key=KEY))
