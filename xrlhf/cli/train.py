"""``xrlhf train``."""

from __future__ import annotations

import os
import subprocess
from typing import Annotated, Optional

import typer

from xrlhf.cli.options import CfgOptions, ConfigName, DeviceName, Overrides, WorkDir, read_recipe
from xrlhf.errors import ConfigError

__all__ = ["NEWEST", "train"]

NEWEST = "newest"
"""What ``--resume`` means when no value follows it."""


def train(
    ctx: typer.Context,
    config: ConfigName,
    overrides: Overrides = None,
    cfg_options: CfgOptions = None,
    work_dir: WorkDir = None,
    resume: Annotated[
        Optional[str],
        typer.Option(
            metavar="[auto|PATH]",
            help="Go on from the newest whole checkpoint; 'auto' starts afresh where there is none; or name one.",
        ),
    ] = None,
    load_from: Annotated[
        Optional[str],
        typer.Option(help="A checkpoint whose weights to start from."),
    ] = None,
    launcher: Annotated[str, typer.Option(help="What started the processes: none, pytorch, slurm or mpi.")] = "none",
    strategy: Annotated[
        Optional[str],
        typer.Option(help="single or ddp; by the number of processes if not given."),
    ] = None,
    device: DeviceName = None,
    seed: Annotated[Optional[int], typer.Option(help="In place of the recipe's seed.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build everything, report, and train nothing.")] = False,
) -> int:
    """Train a recipe.

    Examples:

      xrlhf train tiny_reward_cpu

      xrlhf train configs/internlm2_1_8b_reward.py --cfg-options lr=1e-5 max_length=1024

      NPROC_PER_NODE=8 xrlhf train my_recipe.py --work-dir runs/a --resume auto
    """
    from xrlhf.engine.launch import relaunch_command

    if launcher == "none" and (command := relaunch_command(ctx.obj)):
        return subprocess.run(command, check=False).returncode
    if resume is not None and load_from is not None:
        raise ConfigError("--resume and --load-from exclude each other")
    # Silences a per-process warning of tokenizers; the data layer decides on its own processes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    recipe = read_recipe(config, cfg_options, overrides)
    if work_dir is not None:
        recipe.work_dir = work_dir
    if seed is not None:
        recipe.randomness = {**recipe.get("randomness", {}), "seed": seed}
    if strategy is not None:
        recipe.strategy = strategy

    from xrlhf.devices import find_device
    from xrlhf.engine.build import build_runner
    from xrlhf.engine.launch import leave_process_group, ranks_from_environment, start_process_group

    ranks = ranks_from_environment(launcher)
    chosen = find_device(device or recipe.get("device"))
    if dry_run:
        from xrlhf.engine.dry_run import dry_run as report

        chosen.set_device(ranks.local_rank)
        for line in report(recipe, ranks):
            typer.echo(line)
        return 0
    start_process_group(chosen, ranks)
    try:
        runner = build_runner(
            recipe,
            ranks=ranks,
            device=chosen,
            resume=True if resume == NEWEST else resume or False,
            load_from=load_from,
        )
        runner.train()
    finally:
        leave_process_group()
    return 0
