"""Runs of several jobs on two processes, and whether two runs are the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes

__all__ = ["assert_same_logs", "assert_same_weights", "found_together"]


def found_together(jobs: list[dict[str, Any]], folder: Path, world_size: int = 2) -> dict[str, Any]:
    """Train every job on several processes; what all saw, by the name of the job."""
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    run_processes(Path(__file__).with_name("strategy_worker.py"), folder, world_size=world_size)
    found = [torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(world_size)]
    for name in found[0]:
        # Speeds differ between processes; nothing else may.
        for of_rank in found[1:]:
            for mine, other in zip(found[0][name]["logs"], of_rank[name]["logs"], strict=True):
                assert mine["loss"] == other["loss"]
                assert mine["grad_norm"] == other["grad_norm"]
    return found[0]


def assert_same_weights(folder: Path, name: str, other: str, step: int) -> None:
    """The checkpoints of two jobs hold the same."""
    found, expected = (
        torch.load(folder / job / f"iter_{step}.pth", weights_only=True)["state_dict"] for job in (name, other)
    )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)


def assert_same_logs(
    found: list[dict[str, float]], expected: list[dict[str, float]], names: Sequence[str], tolerance: float = 1e-5
) -> None:
    """Every step logged the same."""
    for mine, other in zip(found, expected, strict=True):
        for key in ("loss", "grad_norm", "num_samples", "num_tokens", *names):
            assert mine[key] == pytest.approx(other[key], rel=tolerance, abs=tolerance), key
