"""The report of an evaluation: JSON for programs, a page for people, and every row's scores."""

from __future__ import annotations

from xrlhf.evaluation.report.content import SCHEMA, SCHEMA_VERSION, build_report
from xrlhf.evaluation.report.files import FILES, is_report, write_report
from xrlhf.evaluation.report.model_run import ModelRun, describe_model
from xrlhf.evaluation.report.reading import read_report

__all__ = [
    "FILES",
    "SCHEMA",
    "SCHEMA_VERSION",
    "ModelRun",
    "build_report",
    "describe_model",
    "is_report",
    "read_report",
    "write_report",
]
