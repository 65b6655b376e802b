"""Every command that the README and the documentation show works.

Blocks fenced as ``bash`` run, in order, in an empty folder. Lines of blocks fenced as ``console`` need what a test does
not have (a GPU, a cluster, weights); their commands, arguments and options are checked against the command line.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from xrlhf.cli.main import _with_left_out_values, app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [body for found, body in _FENCE.findall(text) if found == language]


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


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


def console_commands() -> list[tuple[str, str]]:
    return [
        (page.name, line.split("  #")[0].strip())
        for page in pages_with("console")
        for body in blocks(page, "console")
        for line in body.replace("\\\n", " ").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]


def parse(arguments: list[str]) -> None:
    """Raises for an unknown command or option, a missing argument or one too many."""
    # typer brings a click of its own, so nothing is asked of its classes but their methods.
    command: Any = typer.main.get_command(app)
    while hasattr(command, "resolve_command"):
        context = command.context_class(command, info_name=command.name)
        _, command, arguments = command.resolve_command(context, arguments)
    command.make_context(command.name, list(arguments))


@pytest.mark.parametrize(
    "line", ["train", "train x --no-such-option", "no-such-command", "convert pth_to_hf a b", "score --data x"]
)
def test_the_check_itself_notices(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)missing|no such"):
        parse(line.split())


@pytest.mark.parametrize(("page", "line"), console_commands())
def test_console_commands_fit_the_command_line(page: str, line: str) -> None:
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
        return
    if words[0] != "xrlhf":
        assert words[0] in ("python3", "pip", "source"), f"{page}: what is {line!r}?"
        return
    parse(_with_left_out_values(words[1:]))
