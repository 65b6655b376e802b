"""Where ranks come from: the launcher's environment, or a torchrun that we start ourselves."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from xrlhf.devices import Device
from xrlhf.errors import LaunchError

__all__ = [
    "LAUNCHERS",
    "Ranks",
    "leave_process_group",
    "num_processes_asked_for",
    "ranks_from_environment",
    "relaunch_command",
    "run_processes",
    "start_process_group",
]

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")

_DEFAULT_PORT = 29500


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


def relaunch_command(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str] | None:
    """The torchrun command that starts this command line once per process, if the environment asks for one.

    ``NPROC_PER_NODE`` asks for it; ``NNODES``, ``NODE_RANK``, ``ADDR`` and ``PORT`` (as XTuner's users know them)
    describe a run over several machines.

    Args:
        arguments: What follows ``xrlhf`` on the command line.
        environment: The process's own if None.

    Raises:
        LaunchError: A number that is none, or several nodes without an address.
    """
    env = os.environ if environment is None else environment
    if not num_processes_asked_for(env):
        return None
    processes, nodes = _number(env, "NPROC_PER_NODE", least=1), _number(env, "NNODES", 1, least=1)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    if nodes > 1:
        if "ADDR" not in env:
            raise LaunchError(f"NNODES={nodes} needs ADDR, the address of node 0, on every node")
        command += [
            f"--nnodes={nodes}",
            f"--node_rank={_number(env, 'NODE_RANK', 0)}",
            f"--master_addr={env['ADDR']}",
            f"--master_port={_number(env, 'PORT', _DEFAULT_PORT)}",
        ]
    elif "PORT" in env:
        command += ["--master_addr=127.0.0.1", f"--master_port={_number(env, 'PORT')}"]
    else:
        command += ["--standalone"]
    return [*command, "-m", "xrlhf.cli.main", *arguments, "--launcher", "pytorch"]


def num_processes_asked_for(environment: Mapping[str, str] | None = None) -> int:
    """How many processes, over all machines, ``NPROC_PER_NODE`` asks this one to help start; 0 if it asks for none.

    Raises:
        LaunchError: A number that is none, or below 1.
    """
    env = os.environ if environment is None else environment
    if "NPROC_PER_NODE" not in env or "RANK" in env:
        return 0
    return _number(env, "NPROC_PER_NODE", least=1) * _number(env, "NNODES", 1, least=1)


def run_processes(command: Sequence[str]) -> int:
    """Run what :func:`relaunch_command` returned until all its processes have ended.

    torchrun's part is played by this process itself, so that stopping it stops them all, and so that its account of
    a failure, a traceback of its own, does not bury theirs.

    Returns:
        0 if all succeeded; else the status of the process that failed first, or 1 if a signal ended it; 128 plus the
        signal if this process was told to stop.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = torchrun.parse_args(list(command[3:]))
    # torchrun would give every process one thread, which idles most of a CPU.
    threads = max(1, _num_cpus() // int(arguments.nproc_per_node))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)
    try:
        torchrun.run(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            print(f"process {rank} ended with status {failure.exitcode}; all were stopped", file=sys.stderr)
            return int(failure.exitcode)
        print(f"process {rank} was ended by {failure.signal_name()}; all were stopped", file=sys.stderr)
        return 1
    except SignalException as error:
        print(f"stopped by {error.sigval.name}, and all processes with it", file=sys.stderr)
        return 128 + int(error.sigval)
    return 0


def ranks_from_environment(launcher: str, environment: Mapping[str, str] | None = None) -> Ranks:
    """Read this process's place from what the launcher set.

    Args:
        launcher: One of :data:`LAUNCHERS`.
        environment: The process's own if None.

    Raises:
        LaunchError: An unknown launcher, its variables are missing or wrong, or there is one and it is not named.
    """
    env = os.environ if environment is None else environment
    names = {
        "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
        "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    }
    if launcher == "none":
        if "RANK" in env and _number(env, "WORLD_SIZE", 1) > 1:
            raise LaunchError(
                f"RANK={env['RANK']} and WORLD_SIZE={env['WORLD_SIZE']} say that this is one of several processes, "
                "and every one would train by itself: add --launcher pytorch, or unset RANK"
            )
        return Ranks()
    if launcher not in names:
        raise LaunchError(f"unknown launcher {launcher!r}: choose one of {', '.join(LAUNCHERS)}")
    missing = [name for name in names[launcher] if name not in env]
    if missing:
        how = {"pytorch": "torchrun, or set NPROC_PER_NODE", "slurm": "srun", "mpi": "mpirun"}[launcher]
        raise LaunchError(f"--launcher {launcher} but {', '.join(missing)} not set: start the run with {how}")
    rank, world_size, local_rank = (_number(env, name) for name in names[launcher])
    if not 0 <= rank < world_size or local_rank < 0:
        given = ", ".join(f"{name}={env[name]}" for name in names[launcher])
        raise LaunchError(f"{given} make no sense: ranks count from 0 and stay below the number of processes")
    return Ranks(rank, world_size, local_rank, launcher)


def start_process_group(device: Device, ranks: Ranks, timeout_seconds: float = 1800.0) -> None:
    """Choose this process's device and join the others.

    mmengine skips its own set-up, which knows CUDA-like devices only, when a process group exists.

    Raises:
        LaunchError: The other processes cannot be reached.
    """
    device.set_device(ranks.local_rank)
    if not ranks.is_distributed:
        return
    os.environ.update(RANK=str(ranks.rank), WORLD_SIZE=str(ranks.world_size), LOCAL_RANK=str(ranks.local_rank))
    device.prepare_process_group(
        rank=ranks.rank, world_size=ranks.world_size, local_rank=ranks.local_rank, launcher=ranks.launcher
    )
    # Left unset, mmengine would set them to 1 with a warning for each process.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(torch.get_num_threads()))
    os.environ.setdefault("MASTER_ADDR", _master_address(ranks.launcher))
    os.environ.setdefault("MASTER_PORT", str(_DEFAULT_PORT))
    try:
        dist.init_process_group(
            device.process_group_backend,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timedelta(seconds=timeout_seconds),
        )
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise LaunchError(
            f"rank {ranks.rank} of {ranks.world_size} cannot join the others at {where}: {error}"
        ) from error


def leave_process_group() -> None:
    """Part from the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _master_address(launcher: str) -> str:
    if launcher != "slurm" or "SLURM_JOB_NODELIST" not in os.environ:
        return "127.0.0.1"
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise LaunchError(
            f"cannot read the first host of SLURM_JOB_NODELIST={os.environ['SLURM_JOB_NODELIST']!r} with scontrol "
            f"({error}): set MASTER_ADDR"
        ) from error


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(env: Mapping[str, str], name: str, default: int | None = None, least: int | None = None) -> int:
    if name not in env and default is not None:
        return default
    try:
        number = int(env[name])
    except ValueError as error:
        raise LaunchError(f"{name} must be a whole number, got {env[name]!r}") from error
    if least is not None and number < least:
        raise LaunchError(f"{name} must be at least {least}, got {number}")
    return number
