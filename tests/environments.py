"""Interpreters with other packages than the tests' own, kept in the cache."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from peer_env import environment_python, existing_python

from xrlhf.data.table import default_cache_dir

__all__ = ["installed_python", "python_with"]

_BENCHMARKS = Path(__file__).resolve().parents[1] / "tools" / "bench" / "results" / "peers"


def _kept() -> Path:
    """The folder of environments; XRLHF_TEST_ENVIRONMENTS names another one."""
    return Path(os.environ.get("XRLHF_TEST_ENVIRONMENTS", default_cache_dir() / "environments"))


def python_with(name: str, requirements: list[str]) -> Path:
    """The interpreter of the environment called ``name``, made at first use; skips the test where it cannot be had.

    XRLHF_TEST_ENVIRONMENTS names the folder they are kept in.
    """
    folder = _kept()
    try:
        return environment_python(name, requirements, folder)
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"no environment with {', '.join(requirements)} can be made in {folder}: {error}")


def installed_python(name: str, requirements: list[str]) -> Path:
    """The interpreter of an environment too large to be made by a test; skips the test where there is none.

    It is looked for where tests keep theirs, and where the benchmarks that make it keep theirs.
    """
    for folder in (_kept(), _BENCHMARKS):
        if python := existing_python(name, requirements, folder):
            return python
    pytest.skip(f"there is no environment {name} with {', '.join(requirements)} in {_kept()} or {_BENCHMARKS}")
