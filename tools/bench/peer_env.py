"""Environments of their own, made once, with pinned versions: peers that benchmarks run against, readers of exports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

__all__ = ["environment_python", "existing_python", "trl_python", "trl_requirements"]


def existing_python(name: str, requirements: list[str], folder: Path) -> Path | None:
    """The interpreter of a virtual environment that was made with just these ``requirements``; None without one."""
    stamp = folder / name / "installed.txt"
    is_made = stamp.is_file() and stamp.read_text(encoding="utf-8") == "\n".join(sorted(requirements))
    return folder / name / "bin" / "python" if is_made else None


def environment_python(name: str, requirements: list[str], folder: Path) -> Path:
    """The interpreter of a virtual environment that holds ``requirements``; made at the first call.

    Args:
        name: Name of the environment.
        requirements: Packages with versions, as pip takes them.
        folder: Where environments are kept.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed.
    """
    if existing := existing_python(name, requirements, folder):
        return existing
    place = folder / name
    python = place / "bin" / "python"
    print(f"making the environment {place} (once): {', '.join(requirements)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
    (place / "installed.txt").write_text("\n".join(sorted(requirements)), encoding="utf-8")
    return python


def trl_requirements() -> list[str]:
    """TRL and transformers, and the torch that runs here."""
    release = torch.__version__.split("+")[0]
    return [f"torch=={release}", "trl==1.16.0", "transformers==5.23.0"]


def trl_python(folder: Path) -> Path:
    """The interpreter of an environment with :func:`trl_requirements`.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed.
    """
    return environment_python("trl", trl_requirements(), folder)
