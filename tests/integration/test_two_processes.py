"""Two processes under torchrun: one dies, hangs or has no memory left; all are asked to stop; the folder moves."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from process_pair import NUM_STEPS, PairRun, wait_until

pytestmark = pytest.mark.slow


def test_killed_stopped_moved(
    pair_run: Callable[[str], PairRun],
    unbroken_pair: Path,
    assert_same_end: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    """One process is killed at a random step, the next start is asked to stop, and the folder is moved."""
    run = pair_run("run")
    step = random.SystemRandom().randint(2, NUM_STEPS // 4)
    started = run.pair()
    run.wait_for_step(step)
    run.send(1, signal.SIGKILL)
    killed_at = time.monotonic()
    status, said = started.end(), started.said()
    assert status == 1, f"killed at step {step}: {said}"
    assert time.monotonic() - killed_at < 30
    assert said.endswith("process 1 was ended by SIGKILL; all were stopped\n"), said
    assert "Traceback" not in said
    killed_after = run.newest_step()
    assert step <= killed_after < NUM_STEPS

    started = run.pair()
    run.wait_for_step(killed_after + 3)
    started.process.send_signal(signal.SIGUSR1)
    status, said = started.end(), started.said()
    stopped_after = run.newest_step()
    assert status == 75, said
    assert f"resumed from {run.work_dir}/iter_{killed_after}.pth at step {killed_after} of {NUM_STEPS}" in said
    assert said.endswith(
        f"stopped by SIGUSR1 at step {stopped_after} of {NUM_STEPS}: go on from iter_{stopped_after}.pth "
        "with --resume\n"
    )

    run.work_dir.rename(tmp_path / "moved")
    moved = PairRun(run.recipe, tmp_path / "moved", run.environment)
    started = moved.pair()
    assert started.end() == 0, started.said()
    assert f"moved/iter_{stopped_after}.pth at step {stopped_after}" in started.said()
    assert_same_end(moved.work_dir / f"iter_{NUM_STEPS}.pth", unbroken_pair / f"iter_{NUM_STEPS}.pth")


def test_a_process_that_hangs(pair_run: Callable[[str], PairRun]) -> None:
    """The other one waits for it as long as --timeout says, and names it."""
    run = pair_run("run")
    started = run.pair("--timeout", "15")
    run.wait_for_step(3)
    run.send(1, signal.SIGSTOP)
    try:
        hung_at = time.monotonic()
        wait_until(lambda: "rank 0 stops" in started.said(), "word of the other process")
        assert 8 < time.monotonic() - hung_at < 60
    finally:
        run.send(1, signal.SIGKILL)
    assert started.end() == 1
    assert f"failed: rank 0 stops: no word from rank 1 on {socket.gethostname()}: killed, " in started.said()


def test_no_memory_left_in_one_process(pair_run: Callable[[str], PairRun]) -> None:
    """The allocator's own error, in the words of the run: step, process, micro-batch, and what makes it smaller."""
    run = pair_run("run")
    run.recipe.write_text(
        run.recipe.read_text() + '\nfrom pace import HungryLoss\nmodel["loss"] = dict(type=HungryLoss)\n'
    )
    started = run.pair()
    status, said = started.end(), started.said()
    assert status == 1, said
    line = next(line for line in said.splitlines() if "no memory left" in line)
    assert re.fullmatch(
        r"\[process 1\] failed: step \d+: rank 1 of 2 has no memory left on cpu \([\d,]+ MiB at most so far\) for "
        r"micro-batch \d+ of \d+, \d+ tokens in \d+ group\(s\): lower train_dataloader\.token_budget, now 64, or "
        r"max_length, or turn on gradient checkpointing \(.*allocate 1125899906842624 bytes.*\)",
        line,
    ), line
    assert "Traceback" not in said
    (log,) = run.work_dir.glob("*/rank_1.log")
    assert "pace.py" in log.read_text()
    assert "allocate 1125899906842624 bytes" in log.read_text()


def test_a_port_that_is_in_use(pair_run: Callable[[str], PairRun]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        started = pair_run("run").pair(PORT=port)
        assert started.end() == 2
    assert started.said().startswith(f"error: port {port} of {socket.gethostname()} is in use")
    assert started.said().count("\n") == 1, started.said()


def has_started_processes(parent: int) -> bool:
    """Whether a child of ``parent`` is a process of the run, which its environment says."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == parent and b"\0RANK=" in (folder / "environ").read_bytes():
                return True
    return False


def test_stopped_before_the_first_step(pair_run: Callable[[str], PairRun]) -> None:
    """Nothing is there to save: the signal ends the processes as signals do."""
    run = pair_run("run")
    started = run.pair()
    wait_until(lambda: has_started_processes(started.process.pid), "the first process")
    started.process.send_signal(signal.SIGTERM)
    assert started.end() == 128 + signal.SIGTERM
    assert "Traceback" not in started.said()
    assert run.newest_step() == 0
