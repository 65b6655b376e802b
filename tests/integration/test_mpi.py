"""Two processes under a real Open MPI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from process_pair import NUM_STEPS, XRLHF, PairRun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mpirun() -> list[str]:
    command = shutil.which("mpirun")
    if command is None:
        pytest.skip("Open MPI is not installed (Debian: openmpi-bin)")
    # As in a container of CI: root, and fewer cores than processes.
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [command, *root, "--oversubscribe", "-n", "2"]


def test_a_run(
    pair_run: Callable[[str], PairRun],
    mpirun: list[str],
    unbroken_pair: Path,
    assert_same_end: Callable[[Path, Path], None],
) -> None:
    run = pair_run("run")
    started = run.start([*mpirun, *XRLHF, *run.arguments("--launcher", "mpi")], "mpi.log")
    assert started.end() == 0, started.said()
    assert_same_end(run.work_dir / f"iter_{NUM_STEPS}.pth", unbroken_pair / f"iter_{NUM_STEPS}.pth")
