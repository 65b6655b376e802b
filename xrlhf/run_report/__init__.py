"""One page on one run or several: curves, speed, data, validation, samples, the exact recipe and environment."""

from __future__ import annotations

from xrlhf.run_report.page import render_runs
from xrlhf.run_report.record import RunRecord, read_run, read_runs

__all__ = ["RunRecord", "read_run", "read_runs", "render_runs"]
