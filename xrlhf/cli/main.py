"""The ``xrlhf`` command: one Typer application, one thin file a command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
import typer

from xrlhf.cli.check_dataset import check_dataset
from xrlhf.cli.convert import convert
from xrlhf.cli.copy_cfg import copy_cfg
from xrlhf.cli.env import env
from xrlhf.cli.list_cfg import list_cfg
from xrlhf.cli.log_dataset import log_dataset
from xrlhf.cli.score import score
from xrlhf.cli.test import test
from xrlhf.cli.train import NEWEST, train
from xrlhf.errors import UserError, XrlhfError
from xrlhf.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="xrlhf",
    help="From preference data to an aligned model: train, evaluate, convert and score.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: tuple[Callable[..., Any], ...] = (train, test, score, list_cfg, copy_cfg, check_dataset, log_dataset, env)
for _command in _COMMANDS:
    app.command(_command.__name__.replace("_", "-"))(_command)
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


def _with_resume_value(arguments: Sequence[str]) -> list[str]:
    """``--resume`` may stand alone; the parser wants a value behind it."""
    completed: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        completed.append(argument)
        if argument == "--resume" and (following.startswith("-") or "=" in following):
            completed.append(NEWEST)
    return completed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 a run failed, 2 something the user can mend."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = app(args=_with_resume_value(given), standalone_mode=False, obj=given)
    except click.exceptions.Abort:
        typer.echo("aborted", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        return 2
    except XrlhfError as error:
        typer.echo(f"failed: {error}", err=True)
        return 1
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        return 130
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
