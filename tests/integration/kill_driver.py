"""Starts ``xrlhf train RECIPE --resume auto`` again and again, and kills it at random moments; test_kill runs this.

Arguments: recipe, work directory, how many kills, seed of the moments, how many processes, and further options of the
command. Of several processes one is killed, and the others are ended as a launcher does it; every other start saves in
shards. Python and the libraries are loaded once, and every start is a fork of that state: the same command line,
without ten seconds of imports. Prints one line a kill, and ends with the status of the last start, which nobody kills.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import xrlhf.engine.build  # noqa: F401  (what a fork of this process need not load again)
from xrlhf.cli.main import main
from xrlhf.engine.checkpoint import find_checkpoints, verify

GIVE_UP_SECONDS = 60.0
GRACE_SECONDS = 1.0


def start(recipe: str, work_dir: Path, processes: int, options: list[str]) -> list[int]:
    """The command in processes of its own; returns their ids."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    return [start_one(recipe, work_dir, rank, processes, port, options) for rank in range(processes)]


def start_one(recipe: str, work_dir: Path, rank: int, processes: int, port: str, options: list[str]) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        log = os.open(work_dir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if processes > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
            options = [*options, "--launcher", "pytorch"]
        status = main(["train", recipe, "--work-dir", str(work_dir), "--resume", "auto", *options])
        sys.stdout.flush()
    finally:
        os._exit(status)


def newest(work_dir: Path) -> int:
    return max((item.step for item in find_checkpoints(work_dir)), default=0)


def wait_for_the_moment(how: str, work_dir: Path, chance: random.Random) -> None:
    """Returns when it is time to kill.

    ``start``: while the run still builds its parts. ``step``: any time after a few more steps. ``save``: when the file
    or the folder that a checkpoint is written to has just appeared.
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


def end(processes: list[int]) -> None:
    """End what is left of a start: gently, then not."""
    for process in processes:
        os.kill(process, signal.SIGTERM)
    give_up = time.monotonic() + GRACE_SECONDS
    while processes and time.monotonic() < give_up:
        processes = [process for process in processes if os.waitpid(process, os.WNOHANG) == (0, 0)]
        time.sleep(0.01)
    for process in processes:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def run(recipe: str, work_dir: Path, kills: int, seed: int, processes: int, options: list[str]) -> int:
    chance = random.Random(seed)
    in_shards = ["default_hooks.checkpoint.sharded=True"] if processes > 1 else []
    for number in range(kills):
        how = ("save", "step", "save", "start")[number % 4]
        # Kills of every kind meet both kinds of checkpoints.
        started = start(recipe, work_dir, processes, [*options, *(in_shards if number // 4 % 2 else [])])
        wait_for_the_moment(how, work_dir, chance)
        victim = started.pop(chance.randrange(processes))
        os.kill(victim, signal.SIGKILL)
        _, ended = os.waitpid(victim, 0)
        end(started)
        if not os.WIFSIGNALED(ended):
            print(f"kill {number}: the run had ended before, status {os.waitstatus_to_exitcode(ended)}", flush=True)
            return 3
        leftovers = len(list(work_dir.glob("*.tmp")))
        damaged = [item.path.name for item in find_checkpoints(work_dir) if verify(item.path)]
        print(f"killed {how} step {newest(work_dir)} leftovers {leftovers} damaged {damaged}", flush=True)
    ended_well = [os.waitpid(process, 0)[1] for process in start(recipe, work_dir, processes, options)]
    return max(map(os.waitstatus_to_exitcode, ended_well))


if __name__ == "__main__":
    if "zero" in Path(sys.argv[1]).read_text(encoding="utf-8"):
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed  # noqa: F401
    sys.exit(run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), sys.argv[6:]))
