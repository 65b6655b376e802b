"""Where ranks come from, and the processes that are started here."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from xrlhf.devices import CpuDevice
from xrlhf.engine import launch
from xrlhf.engine.launch import (
    Ranks,
    leave_process_group,
    num_processes_asked_for,
    ranks_from_environment,
    relaunch_command,
    start_process_group,
)
from xrlhf.errors import LaunchError

# ---------------------------------------------------------------- asking for processes


def test_without_a_wish_nothing_is_started() -> None:
    assert relaunch_command(["train", "a"], {}) is None
    assert num_processes_asked_for({}) == 0


def test_a_process_of_a_launcher_starts_no_others() -> None:
    environment = {"NPROC_PER_NODE": "2", "RANK": "0"}
    assert relaunch_command(["train", "a"], environment) is None
    assert num_processes_asked_for(environment) == 0


def test_several_processes_on_one_machine() -> None:
    assert relaunch_command(["train", "a.py", "--resume"], {"NPROC_PER_NODE": "4"}) == [
        sys.executable,
        *["-m", "torch.distributed.run", "--nproc_per_node=4", "--standalone"],
        *["-m", "xrlhf.cli.main", "train", "a.py", "--resume", "--launcher", "pytorch"],
    ]
    with_port = relaunch_command(["train", "a"], {"NPROC_PER_NODE": "4", "PORT": "1234"})
    assert with_port is not None
    assert with_port[3:6] == ["--nproc_per_node=4", "--master_addr=127.0.0.1", "--master_port=1234"]


def test_several_machines() -> None:
    environment = {"NPROC_PER_NODE": "8", "NNODES": "2", "NODE_RANK": "1", "ADDR": "10.0.0.1", "PORT": "1234"}
    command = relaunch_command(["train", "a"], environment)
    assert command is not None
    assert command[3:8] == [
        "--nproc_per_node=8",
        "--nnodes=2",
        "--node_rank=1",
        "--master_addr=10.0.0.1",
        "--master_port=1234",
    ]
    assert num_processes_asked_for(environment) == 16
    in_time = relaunch_command(["train", "a"], environment, timeout_seconds=2.5)
    assert in_time is not None
    assert in_time[3:9] == [*command[3:8], "--rdzv_conf=timeout=3"]


TWO_NODES = {"NPROC_PER_NODE": "2", "NNODES": "2", "NODE_RANK": "0", "ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NPROC_PER_NODE": "two"}, "^NPROC_PER_NODE must be a whole number, got 'two'$"),
        ({"NPROC_PER_NODE": "0"}, "^NPROC_PER_NODE must be at least 1, got 0$"),
        ({"NPROC_PER_NODE": "2", "NNODES": "-1"}, "^NNODES must be at least 1, got -1$"),
        ({"NPROC_PER_NODE": "2", "NNODES": "2"}, "^NNODES=2 needs ADDR, the address of node 0, on every node$"),
        ({"NPROC_PER_NODE": "2", "PORT": "http"}, "^PORT must be a whole number, got 'http'$"),
        ({"NPROC_PER_NODE": "2", "PORT": "0"}, "^PORT must be from 1 to 65535, got 0$"),
        ({**TWO_NODES, "PORT": "65536"}, "^PORT must be from 1 to 65535, got 65536$"),
        ({**TWO_NODES, "NODE_RANK": "2"}, "^NODE_RANK must be from 0 to 1, got 2$"),
        ({**TWO_NODES, "ADDR": "nosuch.invalid"}, "^ADDR=nosuch.invalid is not a host that "),
        (
            {"NPROC_PER_NODE": "2", "NNODES": "2", "ADDR": "127.0.0.1"},
            "^NNODES=2 needs NODE_RANK, from 0 to 1, another one on every node$",
        ),
        ({"NNODES": "2", "NODE_RANK": "0"}, "^NNODES=2 and NODE_RANK=0 need NPROC_PER_NODE, the number of processes"),
    ],
)
def test_a_wrong_wish(environment: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        relaunch_command(["train", "a"], environment)


# ---------------------------------------------------------------- a process's place


@pytest.mark.parametrize(
    ("launcher", "environment"),
    [
        ("pytorch", {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}),
        ("slurm", {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}),
        (
            "mpi",
            {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
        ),
        ("mpi", {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"}),
    ],
)
def test_each_launcher_names_the_place_in_its_own_way(launcher: str, environment: dict[str, str]) -> None:
    ranks = ranks_from_environment(launcher, environment)
    assert ranks == Ranks(rank=3, world_size=4, local_rank=1, launcher=launcher)
    assert ranks.is_distributed


def test_no_launcher() -> None:
    ranks = ranks_from_environment("none", {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "RANK": "0", "WORLD_SIZE": "1"})
    assert ranks == Ranks(rank=0, world_size=1, local_rank=0, launcher="none")
    assert not ranks.is_distributed


@pytest.mark.parametrize(
    ("launcher", "environment", "message"),
    [
        ("srun", {}, "^unknown launcher 'srun': choose one of none, pytorch, slurm, mpi$"),
        (
            "pytorch",
            {"RANK": "0"},
            "^--launcher pytorch but WORLD_SIZE, LOCAL_RANK not set: start the run with torchrun, or set NPROC_PER_",
        ),
        ("slurm", {}, "SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID not set: start the run with srun$"),
        ("mpi", {}, "OMPI_COMM_WORLD_LOCAL_RANK not set: start the run with mpirun$"),
        (
            "pytorch",
            {"RANK": "x", "WORLD_SIZE": "4", "LOCAL_RANK": "1"},
            "^RANK must be a whole number, got 'x'$",
        ),
        (
            "pytorch",
            {"RANK": "4", "WORLD_SIZE": "4", "LOCAL_RANK": "0"},
            "^RANK=4, WORLD_SIZE=4, LOCAL_RANK=0 make no sense: ranks count from 0 and stay below",
        ),
        # torchrun without --launcher: every process would train the whole run by itself, into one folder.
        (
            "none",
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
            "^RANK=1 and WORLD_SIZE=2 say that this is one of several processes, .* add --launcher pytorch",
        ),
        (
            "none",
            {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"},
            "^SLURM_STEP_ID=0 and SLURM_STEP_NUM_TASKS=2 say .* add --launcher slurm, or unset SLURM_STEP_ID$",
        ),
        ("none", {"PMI_RANK": "0", "PMI_SIZE": "2"}, "^PMI_RANK=0 and PMI_SIZE=2 say .* add --launcher mpi, or unset"),
        (
            "slurm",
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"},
            "^--launcher slurm in the batch script itself, where nothing starts the other 3 of 4 tasks: put srun ",
        ),
    ],
)
def test_a_wrong_place(launcher: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        ranks_from_environment(launcher, environment)


# ---------------------------------------------------------------- meeting the others


LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes what joining a group of processes leaves in the environment."""
    for name in (*LAUNCHER_VARIABLES, "GLOO_SOCKET_IFNAME", "MKL_NUM_THREADS"):
        # Set and deleted, so that monkeypatch puts back what was there.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_one_process_needs_no_others(no_group: None) -> None:
    start_process_group(CpuDevice(), Ranks())
    assert not dist.is_initialized()
    leave_process_group()


def test_joining_and_parting(no_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    start_process_group(CpuDevice(), Ranks(0, 1, 0, "pytorch"))
    try:
        assert dist.get_world_size() == 1
        assert dist.get_backend() == "gloo"
        assert os.environ["MASTER_ADDR"] == "127.0.0.1"
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("0", "1", "0")
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total.item() == 1.0
    finally:
        leave_process_group()
    assert not dist.is_initialized()


def test_the_others_do_not_come(no_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(LaunchError, match=rf"^rank 0 of 2: not all processes came to 127\.0\.0\.1:{port} in time: "):
        start_process_group(CpuDevice(), Ranks(0, 2, 0, "pytorch"), timeout_seconds=1.0)
    assert not dist.is_initialized()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_no_time_to_wait(no_group: None, seconds: float) -> None:
    with pytest.raises(LaunchError, match=r"^--timeout must be a number of seconds above 0, got "):
        start_process_group(CpuDevice(), Ranks(0, 2, 0, "pytorch"), timeout_seconds=seconds)


# ---------------------------------------------------------------- processes started here

WORKER = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
rank, what = os.environ["RANK"], sys.argv[1]
print(f"rank {rank} of {os.environ['WORLD_SIZE']}, {os.environ['OMP_NUM_THREADS']} threads", flush=True)
while rank == "1" and what in ("status", "killed") and not os.path.exists("started_0"):
    time.sleep(0.01)
if what == "saved":
    sys.exit(75)
if what == "status" and rank == "1":
    sys.exit(7)
if what == "killed" and rank == "1":
    os.kill(os.getpid(), 9)
if what != "fine":
    open(f"started_{rank}", "w").close()
    time.sleep(120)
"""

DRIVER = """
import sys
from xrlhf.engine.launch import run_processes
sys.exit(run_processes([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
                        "worker.py", sys.argv[1]]))
"""


@pytest.fixture
def driver(tmp_path: Path) -> list[str]:
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "driver.py").write_text(DRIVER)
    return [sys.executable, "driver.py"]


def clean_environment() -> dict[str, str]:
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PYTHONPATH": str(Path(launch.__file__).parents[2])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "status", "said"),
    [
        ("fine", 0, ""),
        ("saved", 75, ""),
        ("status", 7, "process 1 ended with status 7; all were stopped"),
        ("killed", 1, "process 1 was ended by SIGKILL; all were stopped"),
    ],
)
def test_the_status_of_the_first_that_fails_is_passed_on(
    tmp_path: Path, driver: list[str], what: str, status: int, said: str
) -> None:
    result = subprocess.run(
        [*driver, what], cwd=tmp_path, capture_output=True, text=True, timeout=100, env=clean_environment(), check=False
    )
    assert result.returncode == status, result.stderr
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    # The two may write at the same moment, and their ends of line then come one after the other.
    said_by = re.findall(r"rank \d of 2, \d+ threads", result.stdout)
    assert sorted(said_by) == [f"rank {rank} of 2, {threads} threads" for rank in (0, 1)]
    assert result.stderr.strip() == said


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_stopping_the_parent_stops_all(tmp_path: Path, driver: list[str], sent: signal.Signals) -> None:
    parent = subprocess.Popen(
        [*driver, "wait"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    try:
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"started_{rank}").exists() for rank in (0, 1)):
            assert time.monotonic() < deadline, "the processes did not start"
            time.sleep(0.05)
        parent.send_signal(sent)
        # Its pipes close only when the last of its processes is gone.
        _, errors = parent.communicate(timeout=60)
    finally:
        parent.kill()
    assert parent.returncode == 128 + sent
    assert f"stopped by {sent.name}, and all processes with it" in errors
    assert "Traceback" not in errors
