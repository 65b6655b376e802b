"""Where the processes of a run meet: the address and port of the first of them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
import subprocess
import zlib
from collections.abc import Mapping

from xrlhf.engine.node_list import expand_node_list
from xrlhf.errors import LaunchError, error_line

__all__ = ["DEFAULT_PORT", "check_host", "explain_failed_meeting", "interface_towards", "meeting_point"]

DEFAULT_PORT = 29500

# Below the ports that Linux hands out by itself (from 32768 on), above those of services.
_FIRST_JOB_PORT = 16000
_NUM_JOB_PORTS = 16000
_STEPS_A_JOB = 8

_SCONTROL_SECONDS = 60

# Linux's request for the address of an interface; see netdevice(7).
_SIOCGIFADDR = 0x8915


def meeting_point(launcher: str, environment: Mapping[str, str] | None = None) -> tuple[str, int]:
    """The address and port at which the processes of a run meet.

    ``MASTER_ADDR`` and ``MASTER_PORT`` are taken where they are set. Under slurm the address is that of the first
    node of the step, and the port follows from the job's id, so that jobs that share a node do not meet each other;
    2000 jobs in a row have ports of their own. Under MPI all processes must be on one host, or ``MASTER_ADDR`` given.

    Args:
        launcher: One of :data:`xrlhf.engine.launch.LAUNCHERS`.
        environment: The process's own if None.

    Raises:
        LaunchError: The address is not known, or a port is none.
    """
    env = os.environ if environment is None else environment
    address = env.get("MASTER_ADDR") or _address(launcher, env)
    if not env.get("MASTER_PORT"):
        return address, _port(launcher, env)
    try:
        port = int(env["MASTER_PORT"])
    except ValueError as error:
        raise LaunchError(f"MASTER_PORT must be a whole number, got {env['MASTER_PORT']!r}") from error
    if not 1 <= port <= 65535:
        raise LaunchError(f"MASTER_PORT must be from 1 to 65535, got {port}")
    return address, port


def check_host(name: str, address: str) -> None:
    """Refuse an address that this machine cannot resolve, before anything waits for it.

    Args:
        name: The variable or option that gave it, for the message.
        address: A host's name or number.

    Raises:
        LaunchError: It stands for no host.
    """
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise LaunchError(
            f"{name}={address} is not a host that {socket.gethostname()} knows ({why}): give a name or an address that "
            "every node can reach"
        ) from error


def interface_towards(address: str) -> str | None:
    """The network interface through which this machine reaches another; None for itself, or if that cannot be told.

    gloo would take the one that the machine's own name stands for, which many systems say is loopback.

    Args:
        address: A host's name or number, IPv4.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Sends nothing, but chooses the way.
            probe.connect((address, DEFAULT_PORT))
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                try:
                    found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                except OSError:
                    # It has no address.
                    continue
                if socket.inet_ntoa(found[20:24]) == own and not own.startswith("127."):
                    return name
    except OSError:
        pass
    return None


def explain_failed_meeting(error: BaseException, address: str, port: int, setting: str = "MASTER_PORT") -> str:
    """One line for why a process could not join the others.

    Args:
        error: What torch raised.
        address: Where the processes should have met.
        port: The port there.
        setting: The variable that chooses the port.
    """
    text = error_line(error)
    if re.search(r"EADDRINUSE|address already in use", str(error), re.IGNORECASE):
        return (
            f"port {port} of {socket.gethostname()} is in use, by another run or another program: set {setting} to a "
            "free port, the same on every node"
        )
    if re.search(r"time[d]? ?out|DeadlineExceeded", str(error), re.IGNORECASE):
        return (
            f"not all processes came to {address}:{port} in time: look for one that failed to start, and whether "
            f"every node can reach that address and port ({text})"
        )
    if isinstance(error, OSError) and error.errno == errno.EACCES:
        return f"port {port} may not be used here: set {setting} to one above 1023"
    return f"cannot join the others at {address}:{port}: {text}"


def _address(launcher: str, env: Mapping[str, str]) -> str:
    if launcher == "slurm":
        return _slurm_address(env)
    if launcher == "mpi":
        for size, on_this_host in (
            ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
            ("PMI_SIZE", "MPI_LOCALNRANKS"),
        ):
            if size in env and env.get(on_this_host, env[size]) != env[size]:
                raise LaunchError(
                    f"--launcher mpi over several hosts ({env[on_this_host]} of {env[size]} processes are on "
                    f"{socket.gethostname()}) needs MASTER_ADDR, the address of the first host: "
                    "mpirun -x MASTER_ADDR=HOST (Open MPI) or -genv MASTER_ADDR HOST (others)"
                )
    return "127.0.0.1"


def _slurm_address(env: Mapping[str, str]) -> str:
    variables = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    name = next((name for name in variables if env.get(name)), None)
    if name is None:
        return "127.0.0.1"
    try:
        hosts = _scontrol("hostnames", env[name]) or expand_node_list(env[name])
    except LaunchError as error:
        raise LaunchError(f"{name}: {error}, or set MASTER_ADDR") from error
    if len(hosts) == 1:
        return "127.0.0.1"
    return _reachable(hosts[0])


def _reachable(node: str) -> str:
    """A node's name, or the address slurm itself uses where the name means nothing to the network."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        for word in _scontrol("node", node):
            if word.startswith("NodeAddr="):
                return word.removeprefix("NodeAddr=")
    return node


def _scontrol(what: str, name: str) -> list[str]:
    """The words of ``scontrol show WHAT NAME``; none where scontrol is absent or fails."""
    try:
        found = subprocess.run(
            ["scontrol", "show", what, name], check=True, capture_output=True, text=True, timeout=_SCONTROL_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.split()


def _port(launcher: str, env: Mapping[str, str]) -> int:
    if launcher == "slurm" and env.get("SLURM_JOB_ID", "").isdigit():
        step = env.get("SLURM_STEP_ID", "0")
        number = _STEPS_A_JOB * int(env["SLURM_JOB_ID"]) + (int(step) % _STEPS_A_JOB if step.isdigit() else 0)
        return _FIRST_JOB_PORT + number % _NUM_JOB_PORTS
    if launcher == "mpi":
        # Of Open MPI 4 and 5; other MPIs give their processes nothing that names the job.
        job = env.get("PMIX_NAMESPACE") or env.get("OMPI_MCA_ess_base_jobid")
        if job:
            return _FIRST_JOB_PORT + zlib.crc32(job.encode()) % _NUM_JOB_PORTS
    return DEFAULT_PORT
