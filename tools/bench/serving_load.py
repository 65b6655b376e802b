"""Load on a reward server for some minutes: good requests among aborted, malformed, huge and slow ones.

Starts ``xrlhf serve``, and clients that each do one thing after another, drawn at random: ask in one of the protocols,
leave before the answer, send what is no request, send too much, send one byte at a time. Every score is compared with
the offline one. At the end the server is told to stop while requests run. The run fails (status 1) at a score that is
off by more than 1e-4, an answer of another status than is right, an error in the server's log, memory that grew by
more than 5 % over the second half, or a server that does not end with status 0. Example:

    python tools/bench/serving_load.py reward_hf --minutes 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from xrlhf.devices import CpuDevice
from xrlhf.evaluation.scorer import Scorer
from xrlhf.structures import Group

_READY = re.compile(r"ready: \S+ at http://([\d.]+):(\d+)")
_TOLERANCE = 1e-4
_GROWTH = 1.05
_MAX_BODY = 200_000
_MAX_INPUTS = 64


@dataclass
class Row:
    """A prompt with answers, the same as texts, and the offline scores."""

    prompt: str
    answers: list[str]
    texts: list[str]
    scores: list[float]


@dataclass
class Tally:
    """What happened."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    num_scores: int = 0
    largest_difference: float = 0.0
    seconds: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    ending: bool = False

    def compare(self, what: str, got: list[float], wanted: list[float]) -> None:
        """Note how far scores are from the offline ones."""
        if len(got) != len(wanted):
            self.wrong.append(f"{what}: {len(got)} scores for {len(wanted)} answers")
            return
        self.num_scores += len(got)
        difference = max(abs(a - b) for a, b in zip(got, wanted, strict=True))
        self.largest_difference = max(self.largest_difference, difference)
        if difference > _TOLERANCE:
            self.wrong.append(f"{what}: a score is off by {difference:.2g}")

    def status(self, what: str, response: httpx.Response, *right: int) -> bool:
        """Note an answer; whether its status is right. A full server is always right, and one that ends."""
        self.done[f"{what}: {response.status_code}"] += 1
        if response.status_code in (*right, 429, *((503,) if self.ending else ())):
            return response.status_code in right
        self.wrong.append(f"{what}: status {response.status_code}: {response.text[:200]}")
        return False


def make_rows(model: str, count: int, generator: random.Random) -> list[Row]:
    """Rows of random words, a third of them with the prompt of another one, with their offline scores."""
    scorer = Scorer.from_pretrained(model, device=CpuDevice())
    limit = min(scorer.encoder.max_length, 2048)
    words = ["what", "is", "the", "sum", "of", "two", "and", "three", "five", "no", "idea", "because", "I", "think"]

    def text(most: int) -> str:
        length = generator.randrange(2, max(3, most))
        said = ""
        while len(said) < length:
            said += generator.choice(words) + " "
        return said.strip()

    rows: list[Row] = []
    groups: list[Group] = []
    for number in range(count):
        prompt = generator.choice(rows).prompt if rows and number % 3 == 0 else text(limit // 3)
        answers = [text(limit // 6) for _ in range(generator.randrange(1, 9))]
        question = [{"role": "user", "content": prompt}]
        groups.append(Group(question, tuple([{"role": "assistant", "content": answer}] for answer in answers)))
        tokenizer = scorer.encoder.tokenizer
        spoken = [[*question, {"role": "assistant", "content": answer}] for answer in answers]
        texts = [str(tokenizer.apply_chat_template(one, tokenize=False)) for one in spoken]
        rows.append(Row(prompt, answers, texts, []))
    for row, scores in zip(rows, scorer.score(groups), strict=True):
        if not isinstance(scores, list):
            raise RuntimeError(f"a row of the load cannot be scored: {scores}")
        row.scores = scores
    return rows


class Load:
    """Everything that a client may do, on one server.

    Args:
        host: The server's address.
        port: Its port.
        rows: What is asked.
        tally: Where it is noted.
    """

    def __init__(self, host: str, port: int, rows: list[Row], tally: Tally) -> None:
        self.host, self.port = host, port
        self.url = f"http://{host}:{port}"
        self.rows = rows
        self.tally = tally

    async def client(self, number: int, latest: float) -> None:
        """One client, until the time is up."""
        generator = random.Random(number)
        acts = [self.rewards] * 8 + [self.texts] * 6 + [self.pairs] * 4 + [self.several] * 2
        acts += [self.abort] * 6 + [self.malformed] * 3 + [self.huge] * 2 + [self.slow] * 2 + [self.garbage]
        async with httpx.AsyncClient(timeout=120) as http:
            while time.monotonic() < latest:
                act = generator.choice(acts)
                try:
                    await act(http, generator)
                except (httpx.TransportError, OSError) as error:
                    # A server that closes on somebody who sends too much may be faster than the answer.
                    if self.tally.ending or act in (self.huge, self.slow, self.garbage):
                        self.tally.done[f"{act.__name__}: closed"] += 1
                    else:
                        self.tally.wrong.append(f"{act.__name__}: {type(error).__name__}: {error}")

    async def post(self, http: httpx.AsyncClient, path: str, body: Any) -> httpx.Response:
        began = time.perf_counter()
        try:
            response = await http.post(self.url + path, json=body)
        except (httpx.ReadError, httpx.RemoteProtocolError):
            # The server had closed the idle connection meanwhile: any client asks again on another.
            self.tally.done["asked again"] += 1
            response = await http.post(self.url + path, json=body)
        self.tally.seconds.append(time.perf_counter() - began)
        return response

    async def rewards(self, http: httpx.AsyncClient, generator: random.Random) -> None:
        """The project's own protocol."""
        row = generator.choice(self.rows)
        response = await self.post(http, "/v1/rewards", {"inputs": [{"prompt": row.prompt, "responses": row.answers}]})
        if self.tally.status("rewards", response, 200):
            self.tally.compare("rewards", response.json()["results"][0]["scores"], row.scores)

    async def several(self, http: httpx.AsyncClient, generator: random.Random) -> None:
        """Several rows in one request."""
        rows = generator.sample(self.rows, generator.randrange(2, 6))
        inputs = [{"prompt": row.prompt, "responses": row.answers} for row in rows]
        response = await self.post(http, "/v1/rewards", {"inputs": inputs})
        if self.tally.status("several", response, 200):
            got = [score for result in response.json()["results"] for score in result["scores"]]
            self.tally.compare("several", got, [score for row in rows for score in row.scores])

    async def texts(self, http: httpx.AsyncClient, generator: random.Random) -> None:
        """Rendered texts in the protocols of others, as one request or one each at the same time."""
        row = generator.choice(self.rows)
        if generator.random() < 0.5:
            response = await self.post(http, "/get_reward", {"query": row.texts})
            if self.tally.status("texts", response, 200):
                self.tally.compare("get_reward", response.json()["rewards"], row.scores)
            return
        asked = [self.post(http, "/classify", {"input": text, "use_activation": False}) for text in row.texts]
        answers = await asyncio.gather(*asked)
        good = [self.tally.status("texts", answer, 200) for answer in answers]
        if all(good):
            self.tally.compare("classify", [answer.json()["data"][0]["probs"][0] for answer in answers], row.scores)

    async def pairs(self, http: httpx.AsyncClient, generator: random.Random) -> None:
        """Questions and answers in the protocols of others."""
        row = generator.choice(self.rows)
        if generator.random() < 0.5:
            body = {"text_1": row.prompt, "text_2": row.answers, "use_activation": False}
            response = await self.post(http, "/score", body)
            if self.tally.status("pairs", response, 200):
                self.tally.compare("score", [item["score"] for item in response.json()["data"]], row.scores)
            return
        response = await self.post(http, "/rerank", {"query": row.prompt, "texts": row.answers, "raw_scores": True})
        if self.tally.status("pairs", response, 200):
            ranked = sorted(response.json(), key=lambda item: int(item["index"]))
            self.tally.compare("rerank", [item["score"] for item in ranked], row.scores)

    async def abort(self, http: httpx.AsyncClient, generator: random.Random) -> None:
        """Leave before the answer."""
        asking = asyncio.create_task(self.several(http, generator))
        await asyncio.sleep(generator.random() * generator.random())
        asking.cancel()
        try:
            await asking
        except asyncio.CancelledError:
            self.tally.done["abort: left"] += 1

    async def malformed(self, http: httpx.AsyncClient, generator: random.Random) -> None:
        """What is no request."""
        path = generator.choice(["/v1/rewards", "/get_reward", "/classify", "/rerank", "/predict", "/score"])
        content = generator.choice(
            [
                b"",
                b"{",
                b"null",
                b"[" * 50_000,
                b'{"inputs": "x", "query": 7, "input": {}, "text_1": null}',
                b'{"inputs": [{"prompt": "a"}], "query": ["\\ud800"]}',
                generator.randbytes(300),
            ]
        )
        response = await http.post(self.url + path, content=content, headers={"Content-Type": "application/json"})
        right = (200, 400, 422) if path == "/predict" else (400, 422)
        self.tally.status("malformed", response, *right)

    async def huge(self, http: httpx.AsyncClient, generator: random.Random) -> None:
        """Too many bytes, too many inputs, or a conversation that is too long."""
        which = generator.randrange(3)
        if which == 0:
            content = b"x" * (_MAX_BODY * generator.randrange(2, 20))
            response = await http.post(self.url + "/v1/rewards", content=content)
            self.tally.status("huge", response, 413)
        elif which == 1:
            response = await http.post(self.url + "/get_reward", json={"query": ["x"] * (_MAX_INPUTS + 1)})
            self.tally.status("huge", response, 422)
        else:
            body = {"inputs": [{"text": "word " * (_MAX_BODY // 6)}]}
            response = await http.post(self.url + "/v1/rewards", json=body)
            self.tally.status("huge", response, 422)

    async def slow(self, http: httpx.AsyncClient, generator: random.Random) -> None:
        """A body in small pieces, some of which never end."""
        row = generator.choice(self.rows)
        body = json.dumps({"query": row.texts}).encode()
        leaves = generator.random() < 0.5
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            head = ["POST /get_reward HTTP/1.1", "Host: x", "Content-Type: application/json", "Connection: close"]
            writer.write("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode())
            pieces = [body[start : start + len(body) // 10 + 1] for start in range(0, len(body), len(body) // 10 + 1)]
            for piece in pieces[:5] if leaves else pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(generator.random() / 5)
            if leaves:
                self.tally.done["slow: left"] += 1
                return
            answer = await reader.read()
        finally:
            writer.close()
        head_bytes, _, content = answer.partition(b"\r\n\r\n")
        status = int(head_bytes.split()[1]) if head_bytes else 0
        self.tally.done[f"slow: {status}"] += 1
        if status == 200:
            self.tally.compare("slow", json.loads(content)["rewards"], row.scores)
        elif status not in (429, 0) and not self.tally.ending:
            self.tally.wrong.append(f"slow: status {status}")

    async def garbage(self, http: httpx.AsyncClient, generator: random.Random) -> None:
        """What is not even HTTP."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(generator.randbytes(generator.randrange(1, 2000)) + b"\r\n\r\n")
            await writer.drain()
            await asyncio.wait_for(reader.read(), 10)
        except asyncio.TimeoutError:
            pass
        finally:
            writer.close()
        self.tally.done["garbage: sent"] += 1


def resident_mib(pid: int) -> float:
    """Memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} says nothing of its memory")


async def watch(pid: int, tally: Tally, latest: float) -> None:
    """Note the server's memory once a second."""
    while time.monotonic() < latest:
        tally.memory_mib.append(resident_mib(pid))
        await asyncio.sleep(1)


async def run(load: Load, pid: int, clients: int, seconds: float) -> None:
    """All clients for the whole time; then requests that run while the server is told to end."""
    latest = time.monotonic() + seconds
    watching = asyncio.create_task(watch(pid, load.tally, latest))
    await asyncio.gather(*[load.client(number, latest) for number in range(clients)])
    await watching
    load.tally.ending = True
    generator = random.Random(clients)
    async with httpx.AsyncClient(timeout=120) as http:
        health = await http.get(load.url + "/health")
        if health.status_code != 200:
            load.tally.wrong.append(f"health: status {health.status_code} after the load")
        last = [asyncio.create_task(load.rewards(http, generator)) for _ in range(clients)]
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGTERM)
        for result in await asyncio.gather(*last, return_exceptions=True):
            if isinstance(result, httpx.TransportError):
                # It had not been let in when the server closed its door.
                load.tally.done["at the end: closed"] += 1
            elif isinstance(result, Exception):
                load.tally.wrong.append(f"a request at the end: {result!r}")


def growth(memory: list[float]) -> float:
    """Median of the last quarter over that of the quarter before the middle: the first quarter warms up."""
    quarter = max(1, len(memory) // 4)
    return statistics.median(memory[-quarter:]) / statistics.median(memory[quarter : 2 * quarter] or memory)


def main() -> int:
    """Run the load and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an exported reward model")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--token-budget", type=int, default=4096)
    options = parser.parse_args()
    tally = Tally()
    rows = make_rows(options.model, options.rows, random.Random(0))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        command = [sys.executable, "-m", "xrlhf.cli.main", "serve", options.model, "--port", "0", "--device", "cpu"]
        command += ["--token-budget", str(options.token_budget), "--max-body", str(_MAX_BODY)]
        command += ["--max-inputs", str(_MAX_INPUTS)]
        with log.open("w", encoding="utf-8") as output:
            server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while not (found := _READY.search(log.read_text(encoding="utf-8"))):
                if server.poll() is not None:
                    raise RuntimeError(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
                time.sleep(0.1)
            load = Load(found[1], int(found[2]), rows, tally)
            asyncio.run(run(load, server.pid, options.clients, options.minutes * 60))
            status = server.wait(120)
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
        said = log.read_text(encoding="utf-8").splitlines()
    if status != 0:
        tally.wrong.append(f"the server ended with status {status}")
    # Before it is ready it shows how far the model is read.
    while not said[0].startswith("ready: "):
        del said[0]
    expected = [line for line in said if line.startswith(("ready: ", "  curl ")) or line == "stopped"]
    tally.wrong += [f"the server's log: {line}" for line in said if line not in expected]
    grown = growth(tally.memory_mib)
    if grown > _GROWTH:
        tally.wrong.append(f"memory grew by {100 * (grown - 1):.1f} % over the second half")
    report(tally, grown)
    return 1 if tally.wrong else 0


def report(tally: Tally, grown: float) -> None:
    """Print what happened."""
    for what, count in sorted(tally.done.items()):
        print(f"  {what:<24} {count}")
    ordered = sorted(tally.seconds) or [0.0]
    slowest = ordered[int(0.99 * (len(ordered) - 1))]
    print(f"{tally.num_scores} scores, largest difference from offline {tally.largest_difference:.2g}")
    print(f"answers after {statistics.median(ordered):.3f} s (median), {slowest:.3f} s (p99)")
    print(f"memory {tally.memory_mib[0]:.0f} MiB at first, {tally.memory_mib[-1]:.0f} MiB at last, ratio {grown:.3f}")
    for line in tally.wrong[:20]:
        print(f"WRONG {line}")
    print(f"{len(tally.wrong)} wrong" if tally.wrong else "nothing wrong")


if __name__ == "__main__":
    sys.exit(main())
