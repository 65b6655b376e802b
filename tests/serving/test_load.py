"""The load of ``tools/bench/serving_load.py`` in a short form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_minute_of_load(repo_root: Path, reward_folder: Path, command_environment: dict[str, str]) -> None:
    """No wrong score, no wrong status, no word in the log, no growing memory; the requests that ran were finished."""
    result = subprocess.run(
        [sys.executable, str(repo_root / "tools/bench/serving_load.py"), str(reward_folder), "--minutes", "1"],
        env=command_environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing wrong" in result.stdout
    for kind in ("rewards: 200", "texts: 200", "pairs: 200", "abort: left", "malformed: 4", "huge: 413", "slow: 200"):
        assert kind in result.stdout
