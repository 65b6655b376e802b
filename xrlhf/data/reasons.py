"""Why a row of a data set is left out.

A row is *bad* when it does not have the format that the recipe names: something is wrong with the file or with the
choice of the map function. A row is *dropped* when it has the format but carries no usable preference. Both are
counted and reported; neither ever happens in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["Reason", "RowError", "kind_of", "short"]


class Reason(str, Enum):
    """A reason to leave a row out; its value is the short name that reports use.

    Attributes:
        bad: True where the row does not have the format, False where it was dropped on purpose.
        description: Half a sentence for a report.
    """

    bad: bool
    description: str

    def __new__(cls, value: str, bad: bool, description: str) -> Reason:
        member = str.__new__(cls, value)
        member._value_ = value
        member.bad = bad
        member.description = description
        return member

    NOT_JSON = ("not-json", True, "the line is not valid JSON")
    NOT_AN_OBJECT = ("not-an-object", True, "the row is not an object with columns")
    MISSING_COLUMN = ("missing-column", True, "a column of the format is missing")
    WRONG_TYPE = ("wrong-type", True, "a column holds another type than the format has")
    WRONG_ROLES = ("wrong-roles", True, "an unknown role, or roles in an order that makes no conversation")
    NO_PROMPT = ("no-prompt", True, "no prompt is left that all answers share")
    BAD_LABEL = ("bad-label", True, "a label, score or rating lies outside its domain")

    EMPTY = ("empty", False, "an answer is blank")
    TIE = ("tie", False, "the answers are rated alike")
    IDENTICAL = ("identical", False, "two answers are the same")
    DIFFERENT_TURNS = ("different-turns", False, "the conversations part before their last message")
    TOO_LONG = ("too-long", False, "longer than the token limit")
    DUPLICATE = ("duplicate", False, "an earlier row is the same")
    BELOW_MINIMUM = ("below-minimum", False, "too few answers, or a preference weaker than asked for")

    def __str__(self) -> str:
        return str(self.value)


class RowError(ValueError):
    """One row cannot be used.

    Args:
        reason: The kind of trouble, which reports count by.
        detail: One line that names the column, what was found (a type, or a short label or role, never the text of
            a row) and what is accepted.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = " ".join(detail.split())

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def kind_of(value: Any) -> str:
    """What ``value`` is, in the words of a data file: text, number, boolean, list, object or null."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (list, tuple)):
        return "list"
    if isinstance(value, Mapping):
        return "object"
    return type(value).__name__


def short(value: Any, limit: int = 24) -> str:
    """A label, role or column name as an error message may show it: quoted, and cut after ``limit`` characters."""
    if isinstance(value, str):
        return repr(value if len(value) <= limit else value[:limit] + "...")
    if value is None or isinstance(value, (bool, int, float)):
        text = "null" if value is None else repr(value)
        return text if len(text) <= limit else text[:limit] + "..."
    return kind_of(value)
