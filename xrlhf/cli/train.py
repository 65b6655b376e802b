"""``xrlhf train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from xrlhf.cli.lingering import linger, when_ended
from xrlhf.cli.options import CfgOptions, ConfigName, DeviceName, Overrides, WorkDir, read_recipe
from xrlhf.errors import ConfigError

if TYPE_CHECKING:
    from mmengine.config import Config

    from xrlhf.devices import Device
    from xrlhf.engine.launch import Ranks
    from xrlhf.engine.runner import GroupRunner
    from xrlhf.engine.stopping import StopRequest

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
    timeout: Annotated[
        Optional[float],
        typer.Option(metavar="SECONDS", help="How long processes wait for one another; 1800 if not given."),
    ] = None,
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
    gpus: Annotated[
        Optional[int],
        typer.Option(metavar="N", help="With --dry-run: plan memory and time on N devices; needs no weights."),
    ] = None,
    gpu_memory: Annotated[
        Optional[float], typer.Option(metavar="GIB", help="Memory of such a device; of the one here if not given.")
    ] = None,
    gpu_tflops: Annotated[
        Optional[float],
        typer.Option(metavar="TFLOPS", help="Its rate in matrix products; measured on the one here if not given."),
    ] = None,
    link: Annotated[
        Optional[float], typer.Option(metavar="GB/S", help="What such a device sends to the others.")
    ] = None,
) -> int:
    """Train a recipe.

    Examples:

      xrlhf train tiny_reward_cpu

      xrlhf train configs/internlm2_1_8b_reward.py --cfg-options lr=1e-5 max_length=1024

      xrlhf train llama3_8b_reward --dry-run --gpus 8 --gpu-memory 80

      NPROC_PER_NODE=8 xrlhf train my_recipe.py --work-dir runs/a --resume auto
    """
    if gpus is None and any(value is not None for value in (gpu_memory, gpu_tflops, link)):
        raise ConfigError("--gpu-memory, --gpu-tflops and --link describe devices of a plan: add --dry-run --gpus N")
    if gpus is not None and not dry_run:
        raise ConfigError("--gpus plans a run and starts none: add --dry-run, or set NPROC_PER_NODE to start processes")
    if resume is not None and load_from is not None:
        raise ConfigError("--resume and --load-from exclude each other")
    from xrlhf.engine.launch import (
        Ranks,
        num_processes_asked_for,
        ranks_from_environment,
        relaunch_command,
        run_processes,
    )

    wanted = num_processes_asked_for() if launcher == "none" else 0
    if wanted and not dry_run and (command := relaunch_command(ctx.obj, timeout_seconds=timeout)):
        return run_processes(command)
    # Only a dry run comes here with processes asked for: it stands for all that would be started.
    ranks = Ranks(world_size=wanted, launcher="pytorch") if wanted else ranks_from_environment(launcher)
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

    chosen = find_device(device or recipe.get("device"))
    if gpus is not None:
        from xrlhf.engine.dry_run import plan_run

        named = (device or recipe.get("device")) is not None
        for line in plan_run(
            recipe, gpus, chosen, is_named=named, memory_gib=gpu_memory, tflops=gpu_tflops, link_gbs=link
        ):
            typer.echo(line)
        return 0
    if dry_run:
        from xrlhf.engine.dry_run import dry_run as report

        for line in report(recipe, ranks, chosen) if ranks.rank == 0 else ():
            typer.echo(line)
        return 0
    from xrlhf.engine.failure import announce_failure, explain_lost_ranks, introduce, is_first_to_speak
    from xrlhf.engine.launch import leave_process_group, start_process_group
    from xrlhf.engine.logging import log_traceback
    from xrlhf.engine.stopping import StopRequest

    start_process_group(chosen, ranks, timeout)
    introduce(ranks)
    stop_request = StopRequest()
    try:
        status = _run(recipe, ranks, chosen, True if resume == NEWEST else resume or False, load_from, stop_request)
    except Exception as error:
        log_traceback(error)
        when_ended(1)
        lost = explain_lost_ranks(error, ranks)
        if lost is None:
            announce_failure(error, ranks)
            # The others are still at work: parting from them would wait for them.
            raise
        if is_first_to_speak():
            typer.echo(f"failed: {lost}", err=True)
        if not stop_request.is_made:
            # A launcher that found this process's end before the other's would take it for the cause.
            linger(1)
        return 1
    if status == 0:
        leave_process_group()
    return status


def _run(
    recipe: Config,
    ranks: Ranks,
    device: Device,
    resume: bool | str,
    load_from: str | None,
    stop_request: StopRequest,
) -> int:
    """Build the run and train; the exit status."""
    from xrlhf.engine.build import build_runner
    from xrlhf.engine.stopping import STOPPED

    runner = None
    try:
        runner = build_runner(recipe, ranks=ranks, device=device, resume=resume, load_from=load_from)
        runner.train(stop_request)
        if not runner.was_stopped:
            return 0
        # A launcher ends the processes that are left when the first one has ended with a status of its own.
        runner.strategy.barrier()
        how = f"stopped by {stop_request.signal_name}" if stop_request.is_made else "stopped"
        said, status = f"{how} {_where(runner)}", STOPPED
    except KeyboardInterrupt:
        said, status = f"interrupted {_where(runner)}", INTERRUPTED
    if ranks.rank == 0:
        typer.echo(said, err=True)
    return status


def _where(runner: GroupRunner | None) -> str:
    """Where a run stands that did not come to its end, and how to go on."""
    if runner is None:
        return "before the first step"
    from xrlhf.engine.checkpoint import find_checkpoints

    saved = find_checkpoints(Path(runner.work_dir))
    how = f"go on from {saved[0].path.name} with --resume" if saved else "no checkpoint was taken yet"
    step = runner.iter if runner.was_stopped else min(runner.iter + 1, runner.max_iters)
    return f"at step {step} of {runner.max_iters}: {how}"
