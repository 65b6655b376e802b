"""A stand-in for Intel's package: it computes nothing and records, in ``CALLS``, what it is asked for and when."""

from __future__ import annotations

import os
from typing import Any

CALLS: list[tuple[Any, ...]] = []


def note(what: str, *details: Any) -> None:
    CALLS.append((what, *details))


def __autoload() -> None:
    """What torch runs while it is being imported, as the package's entry point asks it to."""
    note("torch loads the package", os.environ.get("PT_HPU_LAZY_MODE"), os.environ.get("PT_ENABLE_INT64_SUPPORT"))
    import habana_frameworks.torch  # noqa: F401
