"""How a side of a benchmark learns what to do and says what it measured, in any environment."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

__all__ = ["cpu_seconds", "read_job", "write_result"]


def read_job(file: str) -> dict[str, Any]:
    """What to do."""
    job: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return job


def write_result(job: dict[str, Any], values: dict[str, Any]) -> None:
    """Write what was measured where the job wants it, and the most memory, MiB, that a device of its own held."""
    peak = None
    if job.get("device") == "cuda":
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**20
    Path(job["result"]).write_text(json.dumps({**values, "peak_device_mib": peak}), encoding="utf-8")


def cpu_seconds() -> float:
    """CPU time of this process and of the processes it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
