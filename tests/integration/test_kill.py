"""A run that is killed twenty times ends with the weights of one that never was."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xrlhf.engine.checkpoint import find_checkpoints, verify
from xrlhf.engine.hooks.curves import read_curves

DRIVER = Path(__file__).with_name("kill_driver.py")
KILLS = 20

MANY_STEPS = """
train_cfg["max_steps"] = 160
default_hooks = dict(checkpoint=dict(interval=1, max_keep=2), logger=dict(interval=5), curves=None)
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""


@pytest.mark.slow
def test_killed_at_random_moments(
    tiny_recipe: Callable[..., Path],
    command_environment: dict[str, str],
    assert_same_end: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    """At start-up, between steps and inside saves; after every kill all checkpoints that have a name are whole."""
    recipe = tiny_recipe(validate=False, extra=MANY_STEPS)

    def drive(work_dir: str, kills: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(DRIVER), str(recipe), str(tmp_path / work_dir), str(kills), "0", "1"],
            env=command_environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    unbroken = drive("unbroken", 0)
    assert unbroken.returncode == 0, (tmp_path / "unbroken.log").read_text()
    result = drive("killed", KILLS)
    said = (tmp_path / "killed.log").read_text()
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{said[-3000:]}"

    assert_nothing_was_lost(result.stdout, KILLS)
    assert_same_end(tmp_path / "unbroken" / "iter_160.pth", tmp_path / "killed" / "iter_160.pth")
    # Two checkpoints are kept, no remains of the others; the curves are those of the unbroken run.
    assert [item.step for item in find_checkpoints(tmp_path / "killed")] == [160, 159]
    assert all(verify(item.path) is None for item in find_checkpoints(tmp_path / "killed"))
    assert not list((tmp_path / "killed").glob("*.tmp"))
    assert read_curves(tmp_path / "killed")["loss"][-1] == read_curves(tmp_path / "unbroken")["loss"][-1]


def assert_nothing_was_lost(said: str, num_kills: int) -> None:
    """What the driver says of its kills: whole checkpoints, steps that never go back, and saves hit in the middle."""
    kills = [
        (int(step), int(leftovers), damaged)
        for step, leftovers, damaged in re.findall(
            r"^killed \w+ step (\d+) leftovers (\d+) damaged (.*)$", said, re.MULTILINE
        )
    ]
    assert len(kills) == num_kills
    assert {damaged for *_, damaged in kills} == {"[]"}
    steps = [step for step, _, _ in kills]
    assert steps == sorted(steps)
    assert sum(leftovers > 0 for _, leftovers, _ in kills) >= num_kills // 7


SPLIT = """
from xrlhf.engine.strategies import ZeROStrategy
model["lora"] = dict(r=4, lora_alpha=16)
strategy = {strategy}
train_cfg["max_steps"] = {steps}
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep=2), logger=dict(interval=5), curves=None, throughput=None
)
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""


# Weights of so small a model would otherwise not be split.
ZERO3 = """dict(
    _delete_=True, type=ZeROStrategy, stage=3, config=dict(zero_optimization=dict(stage3_param_persistence_threshold=0))
)"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "num_kills", "num_steps"), [(ZERO3, KILLS, 110), ("'fsdp'", 6, 40)], ids=["zero3", "fsdp"]
)
def test_one_of_two_processes_killed_at_random_moments(
    strategy: str,
    num_kills: int,
    num_steps: int,
    tiny_recipe: Callable[..., Path],
    command_environment: dict[str, str],
    assert_same_end: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    """Weights are split over both; every other start saves in shards. The end is that of a run nobody killed."""
    recipe = tiny_recipe(validate=False, extra=SPLIT.format(steps=num_steps, strategy=strategy))

    def drive(work_dir: str, kills: int, *more: str) -> str:
        result = subprocess.run(
            [sys.executable, str(DRIVER), str(recipe), str(tmp_path / work_dir), str(kills), "1", "2", *more],
            env=command_environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        said = (tmp_path / work_dir).with_suffix(".log").read_text()
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{said[-3000:]}"
        return result.stdout

    drive("unbroken", 0, "default_hooks.checkpoint.interval=1000")
    assert_nothing_was_lost(drive("killed", num_kills, "default_hooks.checkpoint.max_keep=3"), num_kills)
    last = f"iter_{num_steps}.pth"
    assert_same_end(tmp_path / "unbroken" / last, tmp_path / "killed" / last)
    assert not list((tmp_path / "killed").glob("*.tmp"))
    log = (tmp_path / "killed.log").read_text()
    assert re.search(r"resumed from \S+/iter_\d+ at step", log)
    assert re.search(r"resumed from \S+/iter_\d+\.pth at step", log)


@pytest.mark.slow
def test_a_killed_process_of_its_own(
    tiny_recipe: Callable[..., Path],
    command_environment: dict[str, str],
    xrlhf: Callable[..., Any],
    assert_same_end: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    """The same once with the real command, from the first import on."""
    recipe = tiny_recipe(validate=False, extra=MANY_STEPS)
    options = ["train_cfg.max_steps=40", "--resume", "auto"]
    command = [sys.executable, "-m", "xrlhf.cli.main", "train", str(recipe), "--work-dir", "killed", *options]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=command_environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "iter_7.pth" in line:
                break
        process.kill()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -9
    assert 7 <= max(item.step for item in find_checkpoints(tmp_path / "killed")) < 40
    for work_dir in ("killed", "unbroken"):
        result = xrlhf("train", recipe, "--work-dir", work_dir, *options)
        assert result.returncode == 0, result.stderr
    assert "resumed from " not in result.stdout
    assert_same_end(tmp_path / "unbroken" / "iter_40.pth", tmp_path / "killed" / "iter_40.pth")
