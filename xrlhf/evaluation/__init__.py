"""Evaluation of reward models: exact metrics over whole evaluation sets."""

from __future__ import annotations

from xrlhf.evaluation.metrics import GroupMetrics, pair_statistics, wilson_interval

__all__ = ["GroupMetrics", "pair_statistics", "wilson_interval"]
