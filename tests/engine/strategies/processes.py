"""Processes that meet on this machine, for tests of strategies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

__all__ = ["run_processes"]


def run_processes(worker: Path, folder: Path, timeout_seconds: float = 900.0, *, world_size: int = 2) -> None:
    """Run ``worker`` as all ranks of ``world_size``, told its rank, their number, a port and ``folder``, to the end."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": str(worker.parents[3]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(world_size), port, str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=timeout_seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * world_size, "\n".join(outputs)
