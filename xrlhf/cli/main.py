"""The ``xrlhf`` command: one Typer application, one thin file a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from traceback import format_exception
from typing import Any

import typer

from xrlhf.cli.chat import chat
from xrlhf.cli.check_dataset import check_dataset
from xrlhf.cli.convert import convert
from xrlhf.cli.copy_cfg import copy_cfg
from xrlhf.cli.env import env
from xrlhf.cli.eval import EvalCommand, evaluate
from xrlhf.cli.generate import generate
from xrlhf.cli.lingering import linger
from xrlhf.cli.list_cfg import list_cfg
from xrlhf.cli.list_dataset_formats import list_dataset_formats
from xrlhf.cli.log_dataset import log_dataset
from xrlhf.cli.report import report
from xrlhf.cli.score import ALL_RESPONSES, score
from xrlhf.cli.serve import serve
from xrlhf.cli.test import test
from xrlhf.cli.train import INTERRUPTED, NEWEST, train
from xrlhf.errors import UserError, XrlhfError
from xrlhf.preload import quieten_libraries, set_library_environment
from xrlhf.version import __version__

__all__ = ["app", "main", "run"]

# What launchers call a process's number; ours is set once the processes have met.
_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")

# What the parser raises. typer brings a click of its own from 0.20 on and needs an installed one before that, so the
# class is taken from typer.
_UsageProblem: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="xrlhf",
    help="From preference data to an aligned model: train, evaluate, convert and score.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: tuple[Callable[..., Any], ...] = (
    train,
    test,
    score,
    serve,
    chat,
    report,
    generate,
    list_cfg,
    copy_cfg,
    list_dataset_formats,
    check_dataset,
    log_dataset,
    env,
)
for _command in _COMMANDS:
    app.command(_command.__name__.replace("_", "-"))(_command)
app.command("eval", cls=EvalCommand)(evaluate)
app.add_typer(convert, name="convert")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xrlhf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """From preference data to an aligned model: train, evaluate, convert and score."""


def _with_left_out_values(arguments: Sequence[str]) -> list[str]:
    """``--resume``, and ``--best-of`` of ``score``, may stand alone; the parser wants a value behind them."""
    completed: list[str] = []
    scoring = list(arguments[:1]) == ["score"]
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        completed.append(argument)
        if argument == "--resume" and not _names_a_checkpoint(following):
            completed.append(NEWEST)
        if scoring and argument == "--best-of" and not following.isdecimal():
            completed.append(ALL_RESPONSES)
    return completed


def _names_a_checkpoint(argument: str) -> bool:
    """Whether what follows ``--resume`` is its value, not another option, an override or a recipe."""
    if argument.startswith("-") or argument.endswith(".py"):
        return False
    return "=" not in argument or argument.endswith(".pth")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 a run failed, 2 something the user can mend."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    set_library_environment()
    quieten_libraries()
    try:
        result = app(args=_with_left_out_values(given), prog_name="xrlhf", standalone_mode=False, obj=given)
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("interrupted", err=True)
        return INTERRUPTED
    except UserError as error:
        return _complain(f"error: {error}", 2)
    except XrlhfError as error:
        return _complain(f"failed: {error}", 1)
    except _UsageProblem as error:
        return _explain_usage(error)
    return result if isinstance(result, int) else 0


def _explain_usage(error: Any) -> int:
    """One line for what the parser refuses; a group of commands called without one shows its help."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    help_command = f"{context.command_path if context is not None else 'xrlhf'} --help"
    return _complain(f"error: {error.format_message().rstrip('.')}; see `{help_command}`", 2)


def _complain(text: str, status: int) -> int:
    """Print an error once, although every process of a run may meet it; returns ``status``.

    The first process speaks at once and ends; its launcher then ends the others, unless theirs is another error.
    """
    rank = next((os.environ[name] for name in _RANK_VARIABLES if name in os.environ), "0")
    if rank != "0":
        linger(status)
        text = f"[process {rank}] {text}"
    typer.echo(text, err=True)
    return status


def run() -> None:
    """What the ``xrlhf`` command does.

    A failed process of several says its number and is gone at once: taking its libraries down in order could wait for
    the others.
    """
    try:
        status = main()
    except Exception as error:
        if "RANK" not in os.environ:
            raise
        # In one piece, since all processes write to the same terminal.
        typer.echo(f"[process {os.environ['RANK']}] failed:\n{''.join(format_exception(error)).rstrip()}", err=True)
        status = 1
    if status and "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
