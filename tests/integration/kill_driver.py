"""Starts ``xrlhf train RECIPE --resume auto`` again and again, and kills it at random moments; test_kill runs this.

Arguments: recipe, work directory, how many kills, seed of the moments. Python and the libraries are loaded once, and
every start is a fork of that state: the same command line, without ten seconds of imports. Prints one line a kill,
and ends with the status of the last start, which nobody kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import xrlhf.engine.build  # noqa: F401  (what a fork of this process need not load again)
from xrlhf.cli.main import main
from xrlhf.engine.checkpoint import find_checkpoints, verify

GIVE_UP_SECONDS = 60.0


def start(recipe: str, work_dir: Path) -> int:
    """The command in a process of its own; returns its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        log = os.open(work_dir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = main(["train", recipe, "--work-dir", str(work_dir), "--resume", "auto"])
        sys.stdout.flush()
    finally:
        os._exit(status)


def newest(work_dir: Path) -> int:
    return max((item.step for item in find_checkpoints(work_dir)), default=0)


def wait_for_the_moment(how: str, work_dir: Path, chance: random.Random) -> None:
    """Returns when it is time to kill.

    ``start``: while the run still builds its parts. ``step``: any time after a few more steps. ``save``: when the file
    that a checkpoint is written to has just appeared.
    """
    give_up = time.monotonic() + GIVE_UP_SECONDS
    if how == "start":
        time.sleep(chance.uniform(0.0, 1.5))
        return
    goal = newest(work_dir) + chance.randint(1, 6)
    while newest(work_dir) < goal and time.monotonic() < give_up:
        time.sleep(0.001)
    if how == "step":
        time.sleep(chance.uniform(0.0, 0.06))
        return
    while not list(work_dir.glob("*.tmp")) and time.monotonic() < give_up:
        pass
    time.sleep(chance.uniform(0.0, 0.004))


def run(recipe: str, work_dir: Path, kills: int, seed: int) -> int:
    chance = random.Random(seed)
    for number in range(kills):
        how = ("save", "step", "save", "start")[number % 4]
        process = start(recipe, work_dir)
        wait_for_the_moment(how, work_dir, chance)
        os.kill(process, signal.SIGKILL)
        _, ended = os.waitpid(process, 0)
        if not os.WIFSIGNALED(ended):
            print(f"kill {number}: the run had ended before, status {os.waitstatus_to_exitcode(ended)}", flush=True)
            return 3
        leftovers = len(list(work_dir.glob("*.tmp")))
        damaged = [item.path.name for item in find_checkpoints(work_dir) if verify(item.path)]
        print(f"killed {how} step {newest(work_dir)} leftovers {leftovers} damaged {damaged}", flush=True)
    _, ended = os.waitpid(start(recipe, work_dir), 0)
    return os.waitstatus_to_exitcode(ended)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
