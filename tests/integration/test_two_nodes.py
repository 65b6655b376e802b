"""Two nodes under torchrun: two network namespaces of this machine, joined by a cable that both have an end of."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process_pair import NUM_STEPS, XRLHF, PairRun, Started

pytestmark = pytest.mark.slow

ADDRESSES = ("10.211.77.1", "10.211.77.2")


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[list[str]]]:
    """For each node, what to put before a command that is to run on it."""
    ip = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if ip is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"xrlhf{os.getpid()}{end}" for end in "ab"]
    # Names of interfaces have at most 15 letters.
    cables = [f"x{os.getpid()}{end}" for end in "ab"]
    commands = [
        *(["netns", "add", name] for name in names),
        ["link", "add", cables[0], "type", "veth", "peer", "name", cables[1]],
    ]
    for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
        commands += [
            ["link", "set", cable, "netns", name],
            ["-n", name, "addr", "add", f"{address}/24", "dev", cable],
            ["-n", name, "link", "set", cable, "up"],
            ["-n", name, "link", "set", "lo", "up"],
        ]
    try:
        for command in commands:
            made = subprocess.run([ip, *command], capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"no network namespaces here: ip {' '.join(command)}: {made.stderr.strip()}")
        yield [[ip, "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run([ip, "netns", "delete", name], capture_output=True, check=False)


def start_both(run: PairRun, nodes: list[list[str]], name: str) -> list[Started]:
    return [
        run.start(
            [*nodes[rank], *XRLHF, *run.arguments("--timeout", "60")],
            f"{name}_{rank}.log",
            NPROC_PER_NODE="1",
            NNODES="2",
            NODE_RANK=str(rank),
            ADDR=ADDRESSES[0],
            PORT="29511",
        )
        for rank in (0, 1)
    ]


def test_a_process_of_the_other_node_is_killed(
    pair_run: Callable[[str], PairRun],
    nodes: list[list[str]],
    unbroken_pair: Path,
    assert_same_end: Callable[[Path, Path], None],
) -> None:
    """Each node says which process was lost; both then go on to the weights of one node with two processes."""
    run = pair_run("run")
    started = start_both(run, nodes, "killed")
    run.wait_for_step(5)
    run.send(1, signal.SIGKILL)
    assert [node.end() for node in started] == [1, 1], [node.said() for node in started]
    first, second = (node.said() for node in started)
    assert f"failed: rank 0 stops: no word from rank 1 on {socket.gethostname()}: killed, " in first
    assert first.endswith("process 0 ended with status 1; all were stopped\n")
    assert second == "process 1 was ended by SIGKILL; all were stopped\n"

    started = start_both(run, nodes, "resumed")
    assert [node.end() for node in started] == [0, 0], [node.said() for node in started]
    assert "resumed from " in started[0].said()
    assert_same_end(run.work_dir / f"iter_{NUM_STEPS}.pth", unbroken_pair / f"iter_{NUM_STEPS}.pth")


def test_the_first_node_does_not_answer(pair_run: Callable[[str], PairRun], nodes: list[list[str]]) -> None:
    run = pair_run("run")
    started = run.start(
        [*nodes[1], *XRLHF, *run.arguments("--timeout", "3")],
        "alone.log",
        **{"NPROC_PER_NODE": "1", "NNODES": "2", "NODE_RANK": "1", "ADDR": ADDRESSES[0], "PORT": "29512"},
    )
    assert started.end() == 2, started.said()
    # Where the machine is slow torch tries twice, and says so before.
    line = started.said().splitlines()[-1]
    assert line.startswith(f"error: not all processes came to {ADDRESSES[0]}:29512 in time: ")
