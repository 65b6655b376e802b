"""``xrlhf env``."""

from __future__ import annotations

import typer

__all__ = ["env"]


def env() -> None:
    """Print versions, devices and what is usable here: paste it into a bug report.

    It holds no user name, host name, path or token.

    Example: xrlhf env
    """
    from xrlhf.engine.environment import environment_report

    for line in environment_report():
        typer.echo(line)
