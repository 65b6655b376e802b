"""What an error says."""

from __future__ import annotations

import pytest

from xrlhf.errors import error_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such file"), "no such file"),
        (ValueError("first\n  second\tthird "), "first second third"),
        (OSError(28, "No space left"), "[Errno 28] No space left"),
        (KeyError(), "KeyError"),
        (RuntimeError("\n"), "RuntimeError"),
        (ValueError("x" * 300), "x" * 300),
        (ValueError("x" * 301), "x" * 300 + "..."),
    ],
)
def test_the_message_on_one_line(error: Exception, line: str) -> None:
    assert error_line(error) == line
