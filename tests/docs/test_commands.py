"""Every command that the README and the documentation show works.

Blocks fenced as ``bash`` run, in order, in an empty folder. Lines of blocks fenced as ``console`` name models and files
of the reader's, or need what a test does not have (a GPU, a cluster, weights); ``test_console_commands`` runs those it
can. Here the arguments and options of all of them are checked against the command line, and overrides against recipes.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from shown_commands import ROOT, blocks, console_commands, pages_with

from xrlhf.cli.main import _with_left_out_values, app
from xrlhf.cli.options import read_recipe


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("bash"), ids=lambda page: page.name)
def test_bash_blocks_run(page: Path, tmp_path: Path) -> None:
    script = "set -euo pipefail\n" + "\n".join(blocks(page, "bash"))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XRLHF_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    result = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}"


def parse(arguments: list[str]) -> Any:
    """The context of a command; raises for an unknown command or option, a missing argument or one too many."""
    # typer brings a click of its own, so nothing is asked of its classes but their methods.
    command: Any = typer.main.get_command(app)
    while hasattr(command, "resolve_command"):
        context = command.context_class(command, info_name=command.name)
        _, command, arguments = command.resolve_command(context, arguments)
    return command.make_context(command.name, list(arguments))


@pytest.mark.parametrize(
    "line", ["train", "train x --no-such-option", "no-such-command", "convert pth_to_hf a b", "score --data x"]
)
def test_the_check_itself_notices(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)missing|no such"):
        parse(line.split())


RECIPES = {"my_recipe.py": "internlm2_1_8b_reward", "RECIPE": "internlm2_1_8b_reward"}
"""The shipped recipe that stands for a reader's own."""


class Parsed(Exception):
    """Raised in the place of what a script would do with its arguments."""


def parse_of_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a script of ``tools/`` read its arguments, and no more."""
    read = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: Any) -> None:
        read(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "path", [str(ROOT / Path(words[0]).parent), *sys.path])
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


@pytest.mark.parametrize(("page", "line"), console_commands())
def test_console_commands_fit_the_command_line(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments and options exist; recipes exist, and the values that are overridden are values of theirs."""
    words = shlex.split(line)
    while words and ("=" in words[0] and not words[0].startswith("-")):
        words.pop(0)
    if words[:1] in (["srun"], ["mpirun"]):
        words = words[words.index("xrlhf") :]
    elif words[:1] in (["torchrun"], ["deepspeed"]):
        words = ["xrlhf", *words[words.index("xrlhf.cli.main") + 1 :]]
    elif words[:1] == ["sbatch"]:
        words = ["xrlhf", "train", *words[words.index("tools/slurm_train.sh") + 1 :]]
    if words[0] in ("bash", "python") and words[1].startswith("tools/"):
        assert (ROOT / words[1]).is_file(), f"{page} names {words[1]}, which is not there"
        if words[0] == "python" and "parse_args" in (ROOT / words[1]).read_text(encoding="utf-8"):
            parse_of_script(words[1:], monkeypatch)
        return
    if words[0] == "pip":
        check_extras(words[-1])
        return
    if words[0] != "xrlhf":
        assert words[0] in ("python3", "source"), f"{page}: what is {line!r}?"
        return
    given = parse(_with_left_out_values(words[1:])).params
    if "config" in given:
        name = RECIPES.get(given["config"], given["config"])
        read_recipe(name, given["cfg_options"], given.get("overrides"))


def check_extras(requirement: str) -> None:
    """The extras that ``pip install 'xrlhf[EXTRA]'`` names."""
    for extra in re.findall(r"\[(.+)\]", requirement):
        text = (ROOT / "setup.py").read_text(encoding="utf-8")
        for name in extra.split(","):
            assert f'"{name}": ' in text, f"setup.py has no extra {name}"


@pytest.mark.parametrize("script", sorted((ROOT / "tools").glob("*.sh")), ids=lambda script: script.name)
def test_shell_scripts_are_read(script: Path) -> None:
    """Those that install something are not run here, but bash understands them."""
    result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
