"""Where ranks come from: the launcher's environment, or a torchrun that we start ourselves."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from xrlhf.devices import Device
from xrlhf.engine.rendezvous import (
    DEFAULT_PORT,
    check_host,
    explain_failed_meeting,
    interface_towards,
    meeting_point,
)
from xrlhf.engine.stopping import STOP_SIGNALS, STOPPED
from xrlhf.errors import LaunchError
from xrlhf.preload import TORCH_LOG_LEVEL

__all__ = [
    "DEFAULT_TIMEOUT_SECONDS",
    "LAUNCHERS",
    "Ranks",
    "checked_timeout",
    "leave_process_group",
    "num_processes_asked_for",
    "ranks_from_environment",
    "relaunch_command",
    "run_processes",
    "start_process_group",
]

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")

DEFAULT_TIMEOUT_SECONDS = 1800.0
"""How long processes wait for one another."""

_VARIABLES = {
    "pytorch": [("RANK", "WORLD_SIZE", "LOCAL_RANK")],
    "slurm": [("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")],
    "mpi": [
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ],
}
"""Rank, processes, and rank on the machine, as each launcher calls them; Open MPI and the others differ."""

_SIGNS = (
    ("RANK", "WORLD_SIZE", "pytorch"),
    # The script of a batch job has a rank too, but is no step.
    ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "slurm"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "mpi"),
    ("PMI_RANK", "PMI_SIZE", "mpi"),
)
"""What is set where a launcher has started several processes."""


@dataclass(frozen=True)
class Ranks:
    """This process among all: ``rank`` of ``world_size``, and ``local_rank`` on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str = "none"

    @property
    def is_distributed(self) -> bool:
        return self.launcher != "none"


def relaunch_command(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, timeout_seconds: float | None = None
) -> list[str] | None:
    """The torchrun command that starts this command line once per process, if the environment asks for one.

    ``NPROC_PER_NODE`` asks for it; ``NNODES``, ``NODE_RANK``, ``ADDR`` and ``PORT`` (as XTuner's users know them)
    describe a run over several machines.

    Args:
        arguments: What follows ``xrlhf`` on the command line.
        environment: The process's own if None.
        timeout_seconds: How long the nodes wait for one another; torchrun's own choice if None.

    Raises:
        LaunchError: A number that is none or out of range, several nodes without an address or a number for each, or
            an address that stands for no host.
    """
    env = os.environ if environment is None else environment
    if not num_processes_asked_for(env):
        return None
    processes, nodes = _number(env, "NPROC_PER_NODE", least=1), _number(env, "NNODES", 1, least=1)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    if nodes > 1:
        if not env.get("ADDR"):
            raise LaunchError(f"NNODES={nodes} needs ADDR, the address of node 0, on every node")
        if "NODE_RANK" not in env:
            raise LaunchError(f"NNODES={nodes} needs NODE_RANK, from 0 to {nodes - 1}, another one on every node")
        check_host("ADDR", env["ADDR"])
        command += [
            f"--nnodes={nodes}",
            f"--node_rank={_number(env, 'NODE_RANK', least=0, most=nodes - 1)}",
            f"--master_addr={env['ADDR']}",
            f"--master_port={_number(env, 'PORT', DEFAULT_PORT, least=1, most=65535)}",
        ]
        if timeout_seconds is not None:
            command.append(f"--rdzv_conf=timeout={math.ceil(checked_timeout(timeout_seconds))}")
    elif "PORT" in env:
        port = _number(env, "PORT", least=1, most=65535)
        command += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    else:
        command += ["--standalone"]
    return [*command, "-m", "xrlhf.cli.main", *arguments, "--launcher", "pytorch"]


def checked_timeout(seconds: float) -> float:
    """``seconds``, if a process can wait so long.

    Raises:
        LaunchError: It is not above 0.
    """
    if not seconds > 0 or math.isinf(seconds):
        raise LaunchError(f"--timeout must be a number of seconds above 0, got {seconds:g}")
    return seconds


def num_processes_asked_for(environment: Mapping[str, str] | None = None) -> int:
    """How many processes, over all machines, ``NPROC_PER_NODE`` asks this one to help start; 0 if it asks for none.

    Raises:
        LaunchError: A number that is none, or below 1.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env:
        return 0
    if "NPROC_PER_NODE" not in env:
        if "NODE_RANK" in env and _number(env, "NNODES", 1, least=1) > 1:
            raise LaunchError(
                f"NNODES={env['NNODES']} and NODE_RANK={env['NODE_RANK']} need NPROC_PER_NODE, the number of processes "
                "on each node"
            )
        return 0
    return _number(env, "NPROC_PER_NODE", least=1) * _number(env, "NNODES", 1, least=1)


def run_processes(command: Sequence[str]) -> int:
    """Run what :func:`relaunch_command` returned until all its processes have ended.

    torchrun's part is played by this process itself, so that stopping it stops them all, and so that its account of
    a failure, a traceback of its own, does not bury theirs.

    A signal that asks a run to save and stop is passed on to the processes, whose status then says what became of it.

    Returns:
        0 if all succeeded; else the status of the process that failed first, or 1 if a signal ended it; 128 plus the
        signal if this process was told to stop at once.

    Raises:
        LaunchError: The processes cannot meet.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    arguments = torchrun.parse_args(list(command[3:]))
    # torchrun would give every process one thread, which idles most of a CPU.
    threads = max(1, _num_cpus() // int(arguments.nproc_per_node))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if os.environ.get(TORCH_LOG_LEVEL) == "FATAL":
        # What xrlhf.preload told this process for itself; those it starts tell themselves.
        del os.environ[TORCH_LOG_LEVEL]
    logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic.agent.server.api").setLevel(logging.CRITICAL)
    if hasattr(arguments, "signals_to_handle"):
        # An older torchrun cannot leave them alone: it passes SIGTERM on by itself, and waits 30 seconds.
        names = arguments.signals_to_handle.split(",")
        ours = [number.name for number in STOP_SIGNALS]
        arguments.signals_to_handle = ",".join(name for name in names if name not in ours)
    passed_on: list[int] = []
    try:
        with _passing_on(STOP_SIGNALS, passed_on):
            torchrun.run(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if -failure.exitcode in passed_on:
            # It came before they could listen to it: there was nothing to save.
            print(f"stopped by {failure.signal_name()}, and all processes with it", file=sys.stderr)
            return 128 - int(failure.exitcode)
        if failure.exitcode == STOPPED:
            return STOPPED
        if failure.exitcode > 0:
            print(f"process {rank} ended with status {failure.exitcode}; all were stopped", file=sys.stderr)
            return int(failure.exitcode)
        print(f"process {rank} was ended by {failure.signal_name()}; all were stopped", file=sys.stderr)
        return 1
    except SignalException as error:
        print(f"stopped by {error.sigval.name}, and all processes with it", file=sys.stderr)
        return 128 + int(error.sigval)
    except (dist.DistError, RendezvousError, OSError) as error:
        address, port = arguments.master_addr, int(arguments.master_port)
        raise LaunchError(explain_failed_meeting(error, address, port, "PORT")) from error
    return 0


@contextmanager
def _passing_on(signals: Sequence[signal.Signals], passed_on: list[int]) -> Iterator[None]:
    """Sends what this process is sent to the processes that it has started, and notes it in ``passed_on``."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed_on.append(number)
        for child in _children():
            with suppress(ProcessLookupError):
                os.kill(child, number)

    before = {number: signal.signal(number, pass_on) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children() -> Iterator[int]:
    """The processes that this one has started, as Linux lists them."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in parentheses may hold anything; state and parent follow it.
            parent = stat.read_text(errors="replace").rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue
        if int(parent) == os.getpid():
            yield int(stat.parent.name)


def ranks_from_environment(launcher: str, environment: Mapping[str, str] | None = None) -> Ranks:
    """Read this process's place from what the launcher set.

    Args:
        launcher: One of :data:`LAUNCHERS`.
        environment: The process's own if None.

    Raises:
        LaunchError: An unknown launcher, its variables are missing or wrong, or there is one and it is not named.
    """
    env = os.environ if environment is None else environment
    if launcher == "none":
        for sign, number, name in _SIGNS:
            if sign in env and _number(env, number, 1) > 1:
                raise LaunchError(
                    f"{sign}={env[sign]} and {number}={env[number]} say that this is one of several processes, "
                    f"and every one would train by itself: add --launcher {name}, or unset {sign}"
                )
        return Ranks()
    if launcher not in _VARIABLES:
        raise LaunchError(f"unknown launcher {launcher!r}: choose one of {', '.join(LAUNCHERS)}")
    choices = _VARIABLES[launcher]
    names = next((names for names in choices if any(name in env for name in names)), choices[0])
    missing = [name for name in names if name not in env]
    if missing:
        how = {"pytorch": "torchrun, or set NPROC_PER_NODE", "slurm": "srun", "mpi": "mpirun"}[launcher]
        raise LaunchError(f"--launcher {launcher} but {', '.join(missing)} not set: start the run with {how}")
    rank, world_size, local_rank = (_number(env, name) for name in names)
    if not 0 <= rank < world_size or local_rank < 0:
        given = ", ".join(f"{name}={env[name]}" for name in names)
        raise LaunchError(f"{given} make no sense: ranks count from 0 and stay below the number of processes")
    if launcher == "slurm" and world_size > 1 and "SLURM_JOB_ID" in env and "SLURM_STEP_ID" not in env:
        raise LaunchError(
            f"--launcher slurm in the batch script itself, where nothing starts the other {world_size - 1} of "
            f"{world_size} tasks: put srun before xrlhf"
        )
    return Ranks(rank, world_size, local_rank, launcher)


def start_process_group(device: Device, ranks: Ranks, timeout_seconds: float | None = None) -> None:
    """Choose this process's device and join the others.

    mmengine skips its own set-up, which knows CUDA-like devices only, when a process group exists.

    Args:
        device: Where this process computes.
        ranks: This process among all.
        timeout_seconds: How long to wait for the others, here and in every later exchange;
            :data:`DEFAULT_TIMEOUT_SECONDS` if None.

    Raises:
        LaunchError: The other processes cannot be reached.
    """
    device.set_device(ranks.local_rank)
    if not ranks.is_distributed:
        return
    timeout = checked_timeout(DEFAULT_TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds)
    os.environ.update(RANK=str(ranks.rank), WORLD_SIZE=str(ranks.world_size), LOCAL_RANK=str(ranks.local_rank))
    device.prepare_process_group(
        rank=ranks.rank, world_size=ranks.world_size, local_rank=ranks.local_rank, launcher=ranks.launcher
    )
    # Left unset, mmengine would set them to 1 with a warning for each process.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(torch.get_num_threads()))
    address, port = meeting_point(ranks.launcher)
    check_host("MASTER_ADDR", address)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_towards(address)) is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    try:
        with _native_output_unless_it_fails():
            dist.init_process_group(
                device.process_group_backend,
                rank=ranks.rank,
                world_size=ranks.world_size,
                timeout=timedelta(seconds=timeout),
            )
    except (RuntimeError, ValueError) as error:
        problem = explain_failed_meeting(error, address, port)
        raise LaunchError(f"rank {ranks.rank} of {ranks.world_size}: {problem}") from error


@contextmanager
def _native_output_unless_it_fails() -> Iterator[None]:
    """Keeps back what C++ code prints in the block: if it fails, that is stacks around what its exception says."""
    sys.stderr.flush()
    shown = os.dup(2)
    try:
        with tempfile.TemporaryFile() as aside:
            os.dup2(aside.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(shown, 2)
            aside.seek(0)
            os.write(2, aside.read())
    finally:
        os.close(shown)


def leave_process_group() -> None:
    """Part from the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(
    env: Mapping[str, str], name: str, default: int | None = None, least: int | None = None, most: int | None = None
) -> int:
    if name not in env and default is not None:
        return default
    try:
        number = int(env[name])
    except ValueError as error:
        raise LaunchError(f"{name} must be a whole number, got {env[name]!r}") from error
    if least is not None and most is not None and not least <= number <= most:
        raise LaunchError(f"{name} must be from {least} to {most}, got {number}")
    if least is not None and number < least:
        raise LaunchError(f"{name} must be at least {least}, got {number}")
    return number
