"""Interpreters with other packages than the tests' own, made at first use and kept in the cache."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from peer_env import environment_python

from xrlhf.data.table import default_cache_dir

__all__ = ["python_with"]


def python_with(name: str, requirements: list[str]) -> Path:
    """The interpreter of the environment called ``name``; skips the test where its packages cannot be had.

    XRLHF_TEST_ENVIRONMENTS names the folder they are kept in.
    """
    folder = Path(os.environ.get("XRLHF_TEST_ENVIRONMENTS", default_cache_dir() / "environments"))
    try:
        return environment_python(name, requirements, folder)
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"no environment with {', '.join(requirements)} can be made in {folder}: {error}")
