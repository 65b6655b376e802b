"""What a test looks at of a run that has ended."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FinishedRun:
    """A run that was never stopped: its recipe, its directory, and what the command printed."""

    recipe: Path
    work_dir: Path
    result: subprocess.CompletedProcess[str]

    @property
    def log(self) -> str:
        """What was printed, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.result.stdout)
