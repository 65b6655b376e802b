"""The command itself: what it prints, how it ends, and what it says when it cannot start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xrlhf.cli.main import main
from xrlhf.evaluation.scorer import Scorer
from xrlhf.structures import Group

ROW = {"inputs": [{"prompt": "What is 2 + 2?", "responses": ["4", "5"]}]}


def ask(url: str, body: Any = ROW, key: str | None = None, timeout: float = 60) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode(), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def offline(scorer: Scorer) -> list[float]:
    prompt = [{"role": "user", "content": "What is 2 + 2?"}]
    answers = tuple([{"role": "assistant", "content": text}] for text in ("4", "5"))
    (scores,) = scorer.score([Group(prompt, answers)])
    assert isinstance(scores, list)
    return scores


@pytest.mark.slow
def test_it_serves_and_ends_when_told(serve_process: Callable[..., Any], scorer: Scorer) -> None:
    """The curl line that it prints gives the offline scores."""
    server = serve_process()
    url = server.url
    assert url.startswith("http://127.0.0.1:")
    curl = next(line for line in server.lines if line.strip().startswith("curl"))
    answer = subprocess.run(curl.strip(), shell=True, capture_output=True, text=True, check=True).stdout
    assert json.loads(answer)["results"][0]["scores"] == pytest.approx(offline(scorer), abs=1e-5)
    assert ask(f"{url}/ready", None)[0] == 200
    assert server.end() == 0
    assert server.lines[-1] == "stopped"
    assert "Traceback" not in server.output


@pytest.mark.slow
def test_running_requests_are_finished_before_it_ends(serve_process: Callable[..., Any]) -> None:
    """Several thousand conversations are being computed when SIGTERM comes: all get their scores, new ones a 503."""
    server = serve_process("--token-budget", "512")
    url = server.url
    body = {"inputs": [{"prompt": f"{n}? " * 30, "responses": [f"{n}", "no"]} for n in range(500)]}
    found: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: found.append(ask(f"{url}/v1/rewards", body)))
    asking.start()
    latest = time.monotonic() + 30
    while "xrlhf_conversations_in_server 1000.0" not in _text(f"{url}/metrics"):
        assert time.monotonic() < latest
        time.sleep(0.01)
    os.kill(server.process.pid, signal.SIGTERM)
    statuses = set()
    with contextlib.suppress(urllib.error.URLError, OSError):
        while asking.is_alive():
            statuses.add(ask(f"{url}/v1/rewards")[0])
            statuses.add(ask(f"{url}/ready", None)[0])
    asking.join()
    assert server.end() == 0
    ((status, answer),) = found
    assert status == 200
    assert len(answer["results"]) == 500
    assert 503 in statuses


def _text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(serve_process: Callable[..., Any]) -> None:
    server = serve_process("--token-budget", "256", "--drain-seconds", "600")
    url = server.url
    body = {"inputs": [{"prompt": f"{n}? " * 30, "responses": [f"{n}", "no"]} for n in range(500)]}

    def abandoned() -> None:
        try:
            ask(f"{url}/v1/rewards", body)
        except (urllib.error.URLError, OSError):
            return

    threading.Thread(target=abandoned, daemon=True).start()
    time.sleep(0.3)
    os.kill(server.process.pid, signal.SIGINT)
    time.sleep(0.2)
    assert server.end(signal.SIGINT, seconds=20) == 0


@pytest.mark.slow
def test_keys_names_and_other_limits(serve_process: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sesame\n")
    server = serve_process(
        "--api-key-file", "key", "--name", "judge", "--max-queue", "10", "--max-length", "50", "--max-body", "5000"
    )
    url = server.url
    assert "Authorization: Bearer KEY" in server.output
    assert ask(f"{url}/v1/rewards")[0] == 401
    assert ask(f"{url}/v1/rewards", key="sesame")[1]["model"] == "judge"
    assert ask(f"{url}/health", None)[0] == 200
    info = ask(f"{url}/info", None, key="sesame")[1]
    assert (info["max_length"], info["limits"]["max_queue"], info["limits"]["max_inputs"]) == (50, 10, 10)
    assert "sesame" not in server.output
    assert server.end() == 0


@pytest.mark.slow
def test_workers_share_the_port(serve_process: Callable[..., Any], scorer: Scorer) -> None:
    """Two processes, with a model each; the numbers of both are on one page; the end of the first ends both."""
    server = serve_process("--workers", "2")
    url = server.url
    for _ in range(6):
        status, answer = ask(f"{url}/v1/rewards")
        assert status == 200
        assert answer["results"][0]["scores"] == pytest.approx(offline(scorer), abs=1e-5)
    assert "xrlhf_conversations_total 12.0" in _text(f"{url}/metrics")
    assert server.end() == 0
    assert "Traceback" not in server.output


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_server(serve_process: Callable[..., Any]) -> None:
    server = serve_process("--workers", "2")
    assert server.url
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(int(workers[0]), signal.SIGKILL)
    assert server.process.wait(60) == 1
    assert "failed: worker 0 of the server ended with status -9" in server.wait_for("failed: .*")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_model_that_cannot_be_loaded(serve_process: Callable[..., Any], tmp_path: Path, workers: str) -> None:
    server = serve_process("--workers", workers, model=tmp_path / "nothing-here")
    assert server.process.wait(120) == 2
    errors = [line for line in server.wait_for(r"(?s).*error: .*").splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "nothing-here" in errors[0]
    assert "Traceback" not in server.output


# --------------------------------------------------------------------------------------- refused before it starts


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str], reward_folder: Path) -> Callable[..., str]:
    """Runs ``xrlhf serve`` where it must end with status 2, and returns the one line that it says."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        status = main(["serve", str(reward_folder), *arguments])
        # A model that is read shows how far it is.
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert (status, len(lines)) == (2, 1), lines
        return lines[0]

    return run


def test_a_port_that_is_taken(complaint: Callable[..., str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = complaint("--port", str(port))
    assert line.startswith(f"error: cannot listen at 127.0.0.1, port {port} (")
    assert "choose another with --port" in line


def test_a_host_that_is_not_there(complaint: Callable[..., str]) -> None:
    assert "error: --host no.such.host.invalid is no name or address" in complaint("--host", "no.such.host.invalid")
    assert "cannot listen at 192.0.2.1" in complaint("--host", "192.0.2.1", "--port", "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api-key-env", "NO_SUCH_KEY"], "--api-key-env NO_SUCH_KEY: there is no such environment variable"),
        (["--api-key-env", "BLANK_KEY"], "--api-key-env BLANK_KEY: the key is empty"),
        (["--api-key-env", "ODD_KEY"], "a key is one word of ASCII characters"),
        (["--api-key-file", "no-such-file"], "--api-key-file no-such-file cannot be read"),
        (["--api-key-file", "a", "--api-key-env", "b"], "give --api-key-env or --api-key-file, not both"),
        (["--port", "70000"], "--port must be from 0 to 65535, got 70000"),
        (["--max-queue", "5", "--max-inputs", "6"], "--max-inputs 6 is more than --max-queue 5"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--port", "0", "--device", "abacus"], "unknown device 'abacus'"),
        (["--port", "0", "--max-length", "100000", "--device", "cpu"], "the model reads at most 256 tokens"),
    ],
)
def test_options_that_make_no_sense(
    complaint: Callable[..., str], arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLANK_KEY", " ")
    monkeypatch.setenv("ODD_KEY", "two words")
    assert message in complaint(*arguments)


@pytest.mark.parametrize("name", ["fastapi", "uvicorn", "prometheus_client"])
def test_without_the_extra(complaint: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    assert complaint() == f"error: serving needs {name}, which is not installed: pip install 'xrlhf[serve]'"
