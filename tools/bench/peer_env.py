"""Environments of their own, made once, with pinned versions: peers that benchmarks run against, readers of exports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

__all__ = ["environment_python", "trl_python"]


def environment_python(name: str, requirements: list[str], folder: Path) -> Path:
    """The interpreter of a virtual environment that holds ``requirements``; made at the first call.

    Args:
        name: Name of the environment.
        requirements: Packages with versions, as pip takes them.
        folder: Where environments are kept.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed.
    """
    place = folder / name
    stamp = place / "installed.txt"
    wanted = "\n".join(sorted(requirements))
    python = place / "bin" / "python"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"making the environment {place} (once): {', '.join(requirements)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def trl_python(folder: Path) -> Path:
    """The interpreter of an environment with TRL and transformers, and the torch that runs here.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed.
    """
    release = torch.__version__.split("+")[0]
    return environment_python("trl", [f"torch=={release}", "trl==1.16.0", "transformers==5.23.0"], folder)
