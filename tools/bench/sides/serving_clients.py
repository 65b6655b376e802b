"""Clients of a reward server: starts it, sends every line of a file as one request from many clients, and times it."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from job import read_job, write_result

_READY = re.compile(r"ready: \S+ at (http://\S+)")


def main(job_file: str) -> None:
    """Ask as the job says and write what was measured."""
    job = read_job(job_file)
    bodies = Path(job["bodies"]).read_bytes().splitlines()
    log = Path(f"{job['scratch']}_server.log")
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(job["server"], stdout=output, stderr=subprocess.STDOUT)
        try:
            url = _wait(server, log)
            result = asyncio.run(_ask(url + job["path"], bodies, job["clients"]))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    write_result(job, result)


def _wait(server: subprocess.Popen[bytes], log: Path) -> str:
    while not (found := _READY.search(log.read_text(encoding="utf-8"))):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}: {log.read_text(encoding='utf-8')[-2000:]}")
        time.sleep(0.1)
    return found[1]


async def _ask(url: str, bodies: list[bytes], num_clients: int) -> dict[str, Any]:
    """Every client sends the next row as soon as it has its answer."""
    scores: list[list[float]] = [[] for _ in bodies]
    seconds: list[float] = [0.0 for _ in bodies]
    waiting = iter(range(len(bodies)))

    async def client(http: httpx.AsyncClient) -> None:
        for number in waiting:
            began = time.perf_counter()
            response = await http.post(url, content=bodies[number], headers={"Content-Type": "application/json"})
            response.raise_for_status()
            seconds[number] = time.perf_counter() - began
            answer = response.json()
            scores[number] = answer["rewards"] if "rewards" in answer else answer["results"][0]["scores"]

    limits = httpx.Limits(max_connections=num_clients)
    async with httpx.AsyncClient(timeout=None, limits=limits) as http:
        await _warm_up(url, bodies[0])
        began = time.perf_counter()
        await asyncio.gather(*[client(http) for _ in range(num_clients)])
        whole = time.perf_counter() - began
    return {"scores": [score for row in scores for score in row], "seconds": whole, "latencies": seconds}


async def _warm_up(url: str, body: bytes) -> None:
    """One request before the clock starts; the stand-in says that it is ready a moment before it listens."""
    transport = httpx.AsyncHTTPTransport(retries=8)
    async with httpx.AsyncClient(timeout=None, transport=transport) as patient:
        (await patient.post(url, content=body, headers={"Content-Type": "application/json"})).raise_for_status()


if __name__ == "__main__":
    main(sys.argv[1])
