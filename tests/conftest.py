"""Fixtures shared by the whole test suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, named by XRLHF_SHARED_DATA or lying beside the clone."""
    folder = Path(os.environ.get("XRLHF_SHARED_DATA", REPO_ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data sets not found at {folder}: set XRLHF_SHARED_DATA to their folder")
    return folder
