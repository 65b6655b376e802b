"""``xrlhf train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from xrlhf.cli.options import CfgOptions, ConfigName, DeviceName, Overrides, WorkDir, read_recipe
from xrlhf.errors import ConfigError

if TYPE_CHECKING:
    from xrlhf.engine.runner import GroupRunner

__all__ = ["INTERRUPTED", "NEWEST", "train"]

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 plus SIGINT."""

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
        typer.Option(
            "--strategy",
            "--deepspeed",
            metavar="NAME",
            help="single, ddp, fsdp, zero1, zero2 or zero3 (or fsdp_offload, ...); by the number of processes if not "
            "given.",
        ),
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
    if resume is not None and load_from is not None:
        raise ConfigError("--resume and --load-from exclude each other")
    from xrlhf.engine.launch import num_processes_asked_for, relaunch_command, run_processes

    wanted = num_processes_asked_for() if launcher == "none" else 0
    if wanted and not dry_run and (command := relaunch_command(ctx.obj)):
        return run_processes(command)
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
    from xrlhf.engine.launch import Ranks, leave_process_group, ranks_from_environment, start_process_group

    # Only a dry run comes here with processes asked for: it stands for all that would be started.
    ranks = Ranks(world_size=wanted, launcher="pytorch") if wanted else ranks_from_environment(launcher)
    chosen = find_device(device or recipe.get("device"))
    if dry_run:
        from xrlhf.engine.dry_run import dry_run as report

        for line in report(recipe, ranks, chosen) if ranks.rank == 0 else ():
            typer.echo(line)
        return 0
    start_process_group(chosen, ranks)
    runner = None
    try:
        runner = build_runner(
            recipe,
            ranks=ranks,
            device=chosen,
            resume=True if resume == NEWEST else resume or False,
            load_from=load_from,
        )
        runner.train()
    except KeyboardInterrupt:
        if ranks.rank == 0:
            typer.echo(_interrupted(runner), err=True)
        return INTERRUPTED
    # After an error the others are still at work: parting from them would wait for them.
    leave_process_group()
    return 0


def _interrupted(runner: GroupRunner | None) -> str:
    """Where an interrupted run stands, and how to go on."""
    if runner is None:
        return "interrupted before the first step"
    from xrlhf.engine.checkpoint import find_checkpoints

    saved = find_checkpoints(Path(runner.work_dir))
    how = f"go on from {saved[0].path.name} with --resume" if saved else "no checkpoint was taken yet"
    return f"interrupted at step {min(runner.iter + 1, runner.max_iters)} of {runner.max_iters}: {how}"
