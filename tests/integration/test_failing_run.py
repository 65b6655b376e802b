"""A run that fails says why, once, ends with a status of its own, and keeps what was saved."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xrlhf.cli.main import main
from xrlhf.engine.checkpoint import find_checkpoints, load_checkpoint

pytestmark = pytest.mark.slow

CRASH = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Crash(Hook):
    def __init__(self, rank, step):
        self.rank, self.step = rank, step

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == self.rank and batch_idx == self.step:
            raise RuntimeError("the crash of the test")
"""


@pytest.fixture
def crashing(tmp_path: Path, tiny_recipe: Callable[..., Path]) -> Callable[[int], Path]:
    """A recipe whose process of a given rank crashes in step 13; its directory must be on the path."""

    def write(rank: int) -> Path:
        (tmp_path / "crash.py").write_text(CRASH)
        hook = f"from crash import Crash\ncustom_hooks = [dict(type=Crash, rank={rank}, step=12)]"
        return tiny_recipe(validate=False, extra=hook)

    return write


@pytest.fixture
def with_folder(tmp_path: Path, command_environment: dict[str, str]) -> dict[str, str]:
    return {"PYTHONPATH": f"{tmp_path}:{command_environment['PYTHONPATH']}"}


BROKEN_LOSS = """
import math
import torch
from xrlhf.losses import RankingLoss

class BrokenLoss(RankingLoss):
    calls = 0

    def forward(self, scores, mask, ratings):
        self.calls += 1
        losses = super().forward(scores, mask, ratings)
        return losses * torch.tensor([math.nan if self.calls == 12 and i == 3 else 1.0 for i in range(len(losses))])
"""


def test_a_loss_that_is_not_finite(
    tiny_recipe: Callable[..., Path], xrlhf: Callable[..., Any], with_folder: dict[str, str], tmp_path: Path
) -> None:
    """One group of step 12 has no finite loss: it is named, and the last checkpoint is from before."""
    (tmp_path / "broken_loss.py").write_text(BROKEN_LOSS)
    extra = 'from broken_loss import BrokenLoss\nmodel["loss"] = dict(type=BrokenLoss)'
    result = xrlhf(
        *("train", tiny_recipe(validate=False, extra=extra), "train_dataloader.token_budget=1000"),
        environment=with_folder,
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(
        r"failed: step 12: loss nan, gradient norm nan; stopped before the weights were touched; rows with a "
        r"non-finite loss: \S+pairs\.jsonl row \d+\. Lower the learning rate, or look at these rows",
        line,
    )
    assert [item.step for item in find_checkpoints(tmp_path / "tiny")] == [10, 5]
    # The training log ends with the last good step's.
    assert "Iter(train) [10/20]" in result.stdout
    assert "nan" not in result.stdout


def test_an_update_that_overflows(tiny_recipe: Callable[..., Path], xrlhf: Callable[..., Any], tmp_path: Path) -> None:
    """At a rate of 1e30 loss and gradient are finite, and the weights are not: they never get into a checkpoint."""
    result = xrlhf(
        *("train", tiny_recipe(validate=False), "lr=1e30", "optim_wrapper.max_grad_norm=1e30"),
        *("default_hooks.checkpoint.interval=1", "param_scheduler=None"),
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    saved = find_checkpoints(tmp_path / "tiny")
    assert line.startswith(f"failed: {tmp_path / 'tiny'}/iter_{len(saved) + 1}.pth was not saved: ")
    assert line.endswith(". Lower the learning rate; earlier checkpoints are untouched")
    for item in saved:
        weights = load_checkpoint(item.path)["state_dict"]
        assert all(bool(value.isfinite().all()) for value in weights.values())


def test_a_full_disk(tiny_recipe: Callable[..., Path], xrlhf: Callable[..., Any], tmp_path: Path) -> None:
    """A limit on the size of files fails the first save; the run ends, and no part of a checkpoint is left."""
    first = xrlhf("train", tiny_recipe(validate=False), "train_cfg.max_steps=1", "default_hooks.curves=None")
    assert first.returncode == 0, first.stderr
    limit = (tmp_path / "tiny" / "iter_1.pth").stat().st_size - 1
    result = xrlhf(
        *("train", tiny_recipe(validate=False), "--work-dir", "full", "default_hooks.curves=None"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith(
        f"error: checkpoint {tmp_path / 'full' / 'iter_5.pth'} could not be written ([Errno 27] File too large); "
    )
    assert not list((tmp_path / "full").glob("iter_*"))


def test_a_full_disk_under_the_shards_of_two_processes(
    tiny_recipe: Callable[..., Path],
    xrlhf: Callable[..., Any],
    tmp_path: Path,
    package_logger: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both write while training goes on; both learn of it, one speaks, and the checkpoint before stays."""
    recipe = tiny_recipe(validate=False, extra='default_hooks["checkpoint"] = dict(interval=5, sharded=True)')
    options = ["--strategy", "fsdp", "default_hooks.curves=None", "default_hooks.throughput=None"]
    first = xrlhf("train", recipe, *options, "train_cfg.max_steps=5", environment={"NPROC_PER_NODE": "2"})
    assert first.returncode == 0, first.stderr
    shards = (tmp_path / "tiny" / "iter_5").glob("shard_*")
    limit = min(file.stat().st_size for file in shards) - 1
    result = xrlhf(
        *("train", recipe, *options, "--resume"),
        environment={"NPROC_PER_NODE": "2"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert re.match(
        rf"error: checkpoint {tmp_path}/tiny/iter_10 could not be written \(\[Errno 27\] File too large\); ",
        result.stderr,
    )
    assert [item.path.name for item in find_checkpoints(tmp_path / "tiny")] == ["iter_5"]
    assert not list((tmp_path / "tiny").glob("*.tmp"))
    # One process reads what two have written.
    saved = str(tmp_path / "tiny" / "iter_5")
    assert main(["convert", "pth_to_hf", str(recipe), saved, str(tmp_path / "hf")]) == 0
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    assert main(["test", str(tiny_recipe()), "--checkpoint", saved]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_crash(crashing: Callable[[int], Path], xrlhf: Callable[..., Any], with_folder: dict[str, str]) -> None:
    result = xrlhf("train", crashing(0), environment=with_folder)
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("RuntimeError: the crash of the test")


def test_something_to_mend_in_two_processes(tiny_recipe: Callable[..., Path], xrlhf: Callable[..., Any]) -> None:
    """Both processes meet it, one speaks; the status says that a user can mend it."""
    result = xrlhf(
        *("train", tiny_recipe(), "dataset.sources.0.source=gone.jsonl"), environment={"NPROC_PER_NODE": "2"}
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("gone.jsonl") == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith("process 0 ended with status 2; all were stopped\n")
    assert "Traceback" not in result.stderr


def test_a_crash_of_one_of_two_processes(
    crashing: Callable[[int], Path], xrlhf: Callable[..., Any], with_folder: dict[str, str], tmp_path: Path
) -> None:
    """The other is stopped in the middle of its step; what was saved before is whole."""
    result = xrlhf("train", crashing(1), environment={**with_folder, "NPROC_PER_NODE": "2"}, timeout=240)
    assert result.returncode == 1
    assert "RuntimeError: the crash of the test" in result.stderr
    assert result.stderr.endswith("process 1 ended with status 1; all were stopped\n")
    assert "ChildFailedError" not in result.stderr
    assert [item.step for item in find_checkpoints(tmp_path / "tiny")] == [10, 5]
    assert load_checkpoint(tmp_path / "tiny" / "iter_10.pth")["meta"]["world_size"] == 2
