"""A real slurm of two nodes on this machine: srun, and the batch script that goes on after a preemption."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from process_pair import NUM_STEPS, XRLHF, PairRun, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Iterator[dict[str, str]]:
    """The environment in which slurm's commands speak with a cluster of the tests' own."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "srun") if not shutil.which(name, path=SBIN)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"slurm needs root and Debian's slurm-wlm and munge; not here: {', '.join(missing) or 'root'}")
    folder = tmp_path_factory.mktemp("slurm")
    cluster = ["bash", str(repo_root / "tools" / "ci" / "slurm_cluster.sh")]
    started = subprocess.run([*cluster, "start", str(folder)], capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    try:
        yield {"SLURM_CONF": started.stdout.strip()}
    finally:
        subprocess.run([*cluster, "stop", str(folder)], check=True)


SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Job:
    """A job of tools/slurm_train.sh on both nodes."""

    def __init__(self, environment: Mapping[str, str], log: Path, script: Path, *arguments: str) -> None:
        self.environment, self.log = dict(environment), log
        submitted = self.call("sbatch", "--parsable", "-N", "2", "-n", "2", "-o", str(log), str(script), *arguments)
        self.number = submitted.strip()

    def call(self, *command: str) -> str:
        result = subprocess.run(
            command, env=self.environment, cwd=self.log.parent, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command}: {result.stderr}"
        return result.stdout

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_to_hear(self, text: str, seconds: float = 120.0) -> None:
        try:
            wait_until(lambda: text in self.said(), text, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.call('squeue')}\n{self.said()}") from None

    def signal_script(self) -> None:
        """What slurm does some time before the time limit, as the script asks it to."""
        self.call("scancel", "--signal=USR1", "--batch", self.number)

    def state(self) -> str:
        shown = self.call("scontrol", "show", "job", self.number)
        found = re.search(r"JobState=(\w+)", shown)
        assert found is not None, shown
        return found.group(1)


@pytest.fixture
def script(repo_root: Path) -> Path:
    return repo_root / "tools" / "slurm_train.sh"


# What a run does when it is asked to stop, without the libraries that take seconds to load.
STAND_IN = """#!/bin/bash
echo "task $SLURM_PROCID, start ${SLURM_RESTART_COUNT:-0}: $*"
[[ $2 == fails && $SLURM_PROCID == 1 ]] && exit 2
[[ $2 == killed && $SLURM_PROCID == 1 ]] && kill -9 $$
trap 'echo "task $SLURM_PROCID saved"; exit 75' USR1
trap 'exit 75' TERM
[[ $2 == fails || $2 == killed ]] && trap 'exit 1' TERM
[[ ${SLURM_RESTART_COUNT:-0} == 1 ]] && exit 0
sleep 60 & wait
"""


@pytest.fixture
def stand_in(tmp_path: Path, slurm: dict[str, str]) -> dict[str, str]:
    command = tmp_path / "stand_in"
    command.write_text(STAND_IN)
    command.chmod(0o755)
    return {**os.environ, **slurm, "XRLHF_COMMAND": str(command)}


def test_the_script_queues_again(stand_in: dict[str, str], script: Path, tmp_path: Path) -> None:
    job = Job(stand_in, tmp_path / "job.log", script, "a.py", "lr=1")
    job.wait_to_hear("task 1, start 0: train a.py lr=1 --launcher slurm --resume auto")
    job.wait_to_hear("task 0, start 0")
    job.signal_script()
    job.wait_to_hear("ended with status 75 after SIGUSR1")
    job.wait_to_hear("start 2 of job")
    assert job.said().endswith(f"start 2 of job {job.number} ended with status 0\n")
    assert {"task 0 saved", "task 1 saved"} <= set(job.said().splitlines())


@pytest.mark.parametrize(("recipe", "status"), [("fails", 2), ("killed", 137)])
def test_the_script_leaves_failures_alone(
    stand_in: dict[str, str], script: Path, tmp_path: Path, recipe: str, status: int
) -> None:
    job = Job(stand_in, tmp_path / "job.log", script, recipe)
    job.wait_to_hear("start 1 of job")
    # srun tells the highest status of all tasks: where it is quick, that of a task that it ended because of the other.
    last = job.said().splitlines()[-1]
    assert last in [f"start 1 of job {job.number} ended with status {found}" for found in (status, 143)]
    wait_until(lambda: job.state() == "FAILED", "the end of the job", 30)


def test_a_job_that_is_cancelled_does_not_come_back(stand_in: dict[str, str], script: Path, tmp_path: Path) -> None:
    job = Job(stand_in, tmp_path / "job.log", script, "a.py")
    job.wait_to_hear("task 1, start 0")
    job.wait_to_hear("task 0, start 0")
    job.call("scancel", job.number)
    job.wait_to_hear("after SIGTERM")
    wait_until(lambda: job.state() == "CANCELLED", "the end of the job", 30)


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [(["a.py"], {"SLURM_JOB_ID": ""}, "this is a batch script"), ([], {"SLURM_JOB_ID": "1"}, "name a recipe")],
)
def test_the_script_by_itself(script: Path, arguments: list[str], variables: dict[str, str], said: str) -> None:
    result = subprocess.run(
        ["bash", str(script), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {said}: ")
    assert result.stderr.endswith("sbatch [OPTION...] tools/slurm_train.sh RECIPE [ARGUMENT...]\n")


def test_killed_preempted_and_at_its_time_limit(
    pair_run: Callable[[str], PairRun],
    slurm: dict[str, str],
    script: Path,
    unbroken_pair: Path,
    assert_same_end: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    """A task of srun is killed and a batch job takes over; a more urgent job takes its nodes; then its time is up.

    Each time the run goes on from where it was, the last two times by itself, and ends as one that nobody stopped.
    """
    run = pair_run("run")
    srun = ["srun", "-N", "2", "-n", "2", "--kill-on-bad-exit=1"]
    started = run.start([*srun, *XRLHF, *run.arguments("--launcher", "slurm")], "srun.log", **slurm)
    run.wait_for_step(3)
    run.send(1, signal.SIGKILL)
    killed_at = time.monotonic()
    assert started.end() == 128 + signal.SIGKILL, started.said()
    assert time.monotonic() - killed_at < 40
    assert "task 1: Killed" in started.said()
    killed_after = run.newest_step()

    environment = {**run.environment, **slurm, "XRLHF_COMMAND": " ".join(XRLHF)}
    job = Job(environment, tmp_path / "job.log", script, str(run.recipe), "--work-dir", str(run.work_dir))
    run.wait_for_step(killed_after + 3)
    job.call("sbatch", "-p", "urgent", "-N", "2", "--exclusive", "-o", str(tmp_path / "urgent.log"), "--wrap", "true")
    job.wait_to_hear("start 1 of job")
    assert f"start 1 of job {job.number} ended with status 75 after preemption\n" in job.said()
    assert f"iter_{killed_after}.pth at step {killed_after} of {NUM_STEPS}" in job.said()
    preempted_after = run.newest_step()
    assert f"stopped by SIGTERM at step {preempted_after} of {NUM_STEPS}: go on from" in job.said()

    run.wait_for_step(preempted_after + 3)
    job.signal_script()
    job.wait_to_hear("start 2 of job")
    assert f"start 2 of job {job.number} ended with status 75 after SIGUSR1\n" in job.said()
    assert f"iter_{preempted_after}.pth at step {preempted_after} of {NUM_STEPS}" in job.said()
    assert f"stopped by SIGUSR1 at step {run.newest_step()} of {NUM_STEPS}" in job.said()

    job.wait_to_hear("start 3 of job")
    assert job.said().endswith(f"start 3 of job {job.number} ended with status 0\n")
    assert_same_end(run.work_dir / f"iter_{NUM_STEPS}.pth", unbroken_pair / f"iter_{NUM_STEPS}.pth")


def test_tasks_without_the_launcher(pair_run: Callable[[str], PairRun], slurm: dict[str, str]) -> None:
    run = pair_run("run")
    started = run.start(["srun", "-n", "2", "--kill-on-bad-exit=1", *XRLHF, *run.arguments()], "alone.log", **slurm)
    assert started.end() == 2, started.said()
    assert "SLURM_STEP_NUM_TASKS=2 say that this is one of several processes" in started.said()
    assert "add --launcher slurm" in started.said()
