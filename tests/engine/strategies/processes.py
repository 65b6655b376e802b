"""Two processes that meet on this machine, for tests of strategies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

__all__ = ["run_processes"]


def run_processes(worker: Path, folder: Path, timeout_seconds: float = 300.0) -> None:
    """Run ``worker`` as ranks 0 and 1 of 2, told its rank, the world size, a port and ``folder``, until both end."""
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
            [sys.executable, str(worker), str(rank), "2", port, str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=timeout_seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
