"""A run that is stopped and goes on ends as if it had never stopped, to the last bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_run import FinishedRun

from xrlhf.engine.checkpoint import load_checkpoint
from xrlhf.engine.hooks.curves import read_curves

pytestmark = pytest.mark.slow

NO_PICTURE = "default_hooks.curves=None"


def test_going_on_from_the_middle(
    unbroken: FinishedRun,
    stopped_at: Callable[..., Path],
    xrlhf: Callable[..., Any],
    assert_same_end: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    """Dropout is on; the directory was moved; the newest checkpoint is damaged, so the one before it is used."""
    run = stopped_at(unbroken.work_dir, 10, tmp_path / "moved")
    for suffix in (".pth", ".pth.json"):
        content = (unbroken.work_dir / f"iter_15{suffix}").read_bytes()
        (run / f"iter_15{suffix}").write_bytes(content[: len(content) // 2] if suffix == ".pth" else content)
    result = xrlhf("train", unbroken.recipe, "--work-dir", run, "--resume", NO_PICTURE)
    assert result.returncode == 0, result.stderr
    assert f"checkpoint {run / 'iter_15.pth'} is passed over: it has " in result.stdout
    assert f"resumed from {run / 'iter_10.pth'} at step 10 of 20" in result.stdout
    for step in (15, 20):
        assert_same_end(unbroken.work_dir / f"iter_{step}.pth", run / f"iter_{step}.pth")
    # What was logged after going on equals what the unbroken run logged there.
    assert read_curves(run)["loss"] == read_curves(unbroken.work_dir)["loss"][2:]


def test_a_finished_run_has_nothing_left_to_do(
    unbroken: FinishedRun, stopped_at: Callable[..., Path], xrlhf: Callable[..., Any], tmp_path: Path
) -> None:
    run = stopped_at(unbroken.work_dir, 20, tmp_path / "done")
    before = (run / "iter_20.pth").read_bytes()
    result = xrlhf("train", unbroken.recipe, "--work-dir", run, "--resume", NO_PICTURE)
    assert result.returncode == 0, result.stderr
    assert "all 20 steps are done already: nothing is left to train" in result.stdout
    assert "Iter(train)" not in result.stdout
    assert (run / "iter_20.pth").read_bytes() == before


def test_ctrl_c_and_on(
    unbroken: FinishedRun,
    command_environment: dict[str, str],
    xrlhf: Callable[..., Any],
    assert_same_end: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    """Stopped by Ctrl-C somewhere in the middle; the curves of both starts join."""
    run = tmp_path / "stopped"
    # 'auto' starts afresh where there is nothing yet. A wait in every step leaves time for the signal.
    (tmp_path / "slow_steps.py").write_text(SLOW_STEPS)
    slow = tmp_path / "slow.py"
    slow.write_text(unbroken.recipe.read_text() + "\nfrom slow_steps import Wait\ncustom_hooks = [dict(type=Wait)]\n")
    arguments = ["train", str(slow), "--work-dir", str(run), "--resume", "auto"]
    process = subprocess.Popen(
        [sys.executable, "-m", "xrlhf.cli.main", *arguments],
        cwd=tmp_path,
        env={
            **command_environment,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), command_environment["PYTHONPATH"]]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C and would hand that down to this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 200
        while not (run / "iter_10.pth").exists():
            assert time.monotonic() < deadline, "the run does not get to step 10"
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"no checkpoint in {run}: starting from the beginning" in output
    assert errors.startswith("interrupted at step 1")
    assert errors.endswith(" of 20: go on from iter_10.pth with --resume\n")
    assert not (run / "iter_20.pth").exists()

    result = xrlhf("train", unbroken.recipe, "--work-dir", run, "--resume", "auto")
    assert result.returncode == 0, result.stderr
    assert_same_end(unbroken.work_dir / "iter_20.pth", run / "iter_20.pth")
    assert read_curves(run)["loss"] == read_curves(unbroken.work_dir)["loss"]
    assert read_curves(run)["val/accuracy"][-1] == read_curves(unbroken.work_dir)["val/accuracy"][-1]
    assert (run / "curves.png").is_file()


SLOW_STEPS = """
import time
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Wait(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        time.sleep(0.2)
"""


def test_a_seed_of_the_command_line(
    unbroken: FinishedRun,
    tiny_recipe: Callable[..., Path],
    stopped_at: Callable[..., Path],
    xrlhf: Callable[..., Any],
    assert_same_end: Callable[[Path, Path], None],
    largest_difference: Callable[[Path, Path], float],
    tmp_path: Path,
) -> None:
    """Both starts must be given it; the data order of another seed cannot go on."""
    recipe = tiny_recipe(validate=False)
    whole = xrlhf("train", recipe, "--seed", "7", NO_PICTURE)
    assert whole.returncode == 0, whole.stderr
    assert largest_difference(unbroken.work_dir / "iter_20.pth", tmp_path / "tiny" / "iter_20.pth") > 1e-3
    run = stopped_at(tmp_path / "tiny", 5, tmp_path / "second")
    named = ["--resume", run / "iter_5.pth"]
    refused = xrlhf("train", recipe, "--work-dir", run, *named, NO_PICTURE)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: {run / 'iter_5.pth'} was trained with seed=7 and the recipe says 0: the same data order cannot go on. "
        "Use the same value, or --load-from to start a new run from these weights\n"
    )
    result = xrlhf("train", recipe, "--work-dir", run, *named, "--seed", "7", NO_PICTURE)
    assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "tiny" / "iter_20.pth", run / "iter_20.pth")


def test_going_on_with_another_recipe(
    unbroken: FinishedRun, stopped_at: Callable[..., Path], xrlhf: Callable[..., Any], tmp_path: Path
) -> None:
    run = stopped_at(unbroken.work_dir, 5, tmp_path / "run")
    for change, problem in (
        ("train_dataloader.groups_per_step=4", "was trained with groups_per_step=8 and the recipe says 4"),
        ("param_scheduler=None", "was trained with param_schedulers=['LinearLR', 'CosineAnnealingLR'] and the recipe"),
        ("model.lora.r=2", "is of another model than the recipe"),
    ):
        result = xrlhf("train", unbroken.recipe, "--work-dir", run, "--resume", NO_PICTURE, change)
        assert result.returncode == 2, change
        assert f"error: {run / 'iter_5.pth'} {problem}" in result.stderr
    assert {path.name for path in run.glob("iter_*")} == {"iter_5.pth", "iter_5.pth.json"}


def test_a_longer_run_goes_on_with_the_schedule_it_had(
    unbroken: FinishedRun, stopped_at: Callable[..., Path], xrlhf: Callable[..., Any], tmp_path: Path
) -> None:
    """And says so; and going on from an older checkpoint beside newer ones says what that means for the next time."""
    run = stopped_at(unbroken.work_dir, 20, tmp_path / "run")
    for name in ("iter_15.pth", "iter_15.pth.json"):
        (run / name).write_bytes((unbroken.work_dir / name).read_bytes())
    arguments = ["--resume", run / "iter_15.pth", NO_PICTURE, "train_cfg.max_steps=22"]
    result = xrlhf("train", unbroken.recipe, "--work-dir", run, *arguments)
    assert result.returncode == 0, result.stderr
    # A fifth of 22 steps is 4 as a fifth of 20 is: the warm-up is the same, the cosine has 18 steps in place of 16.
    changes = "T_max from 16 to 18, end from 20 to 22"
    assert f"the recipe changes CosineAnnealingLR ({changes}), but a resumed run goes on with" in result.stdout
    assert "the recipe changes LinearLR" not in result.stdout
    assert f"{run} holds iter_20.pth from beyond step 15, which a plain --resume will prefer" in result.stdout
    assert "resumed from " in result.stdout
    assert load_checkpoint(run / "iter_22.pth")["meta"]["step"] == 22


def test_two_processes_equal_one_and_take_turns_with_it(
    tiny_recipe: Callable[..., Path],
    stopped_at: Callable[..., Path],
    xrlhf: Callable[..., Any],
    largest_difference: Callable[[Path, Path], float],
    tmp_path: Path,
) -> None:
    """Without dropout, which differs by process: one, two, and one after two, all come to the same weights."""
    recipe = tiny_recipe(validate=True, extra='model["lora"] = None\ndefault_hooks["curves"] = None')
    one = xrlhf("train", recipe, "--work-dir", "one")
    two = xrlhf("train", recipe, "--work-dir", "two", environment={"NPROC_PER_NODE": "2"})
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stdout + two.stderr
    assert "strategy DDPStrategy, 2 process(es)" in two.stdout
    assert re.search(r"matrix products: [\d.,]+ GFLOP/s in float32 on each of 2 processes, the rate mfu is", two.stdout)
    assert two.stderr == ""
    last = "iter_20.pth"
    assert largest_difference(tmp_path / "one" / last, tmp_path / "two" / last) < 1e-6
    assert largest_difference(tmp_path / "one" / "iter_5.pth", tmp_path / "two" / last) > 1e-3
    losses = [read_curves(tmp_path / name)["loss"] for name in ("one", "two")]
    assert [loss for _, loss in losses[1]] == pytest.approx([loss for _, loss in losses[0]], abs=1e-6)
    accuracies = [read_curves(tmp_path / name)["val/accuracy"] for name in ("one", "two")]
    assert accuracies[0] == accuracies[1]
    turns = stopped_at(tmp_path / "two", 10, tmp_path / "turns")
    result = xrlhf("train", recipe, "--work-dir", turns, "--resume")
    assert result.returncode == 0, result.stderr
    assert "saved by 2 process(es), goes on with 1: the same groups every step, other dropout" in result.stdout
    assert largest_difference(tmp_path / "one" / last, turns / last) < 1e-6
