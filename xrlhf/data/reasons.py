"""Why a row of a data set is left out.

A row is *bad* when it does not have the format that the recipe names: something is wrong with the file or with the
choice of the map function. A row is *dropped* when it has the format but carries no usable preference. Both are
counted and reported; neither ever happens in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from xrlhf.structures import Group

__all__ = ["Reason", "RowError", "kind_of", "short"]


class Reason(str, Enum):
    """A reason to leave a row out; its value is the short name that reports use."""

    NOT_JSON = "not-json"
    NOT_AN_OBJECT = "not-an-object"
    MISSING_COLUMN = "missing-column"
    WRONG_TYPE = "wrong-type"
    WRONG_ROLES = "wrong-roles"
    NO_PROMPT = "no-prompt"
    BAD_LABEL = "bad-label"

    EMPTY = "empty"
    UNRATED = "unrated"
    TIE = "tie"
    IDENTICAL = "identical"
    DIFFERENT_TURNS = "different-turns"
    TOO_LONG = "too-long"
    DUPLICATE = "duplicate"
    BELOW_MINIMUM = "below-minimum"
    NO_ATTRIBUTES = "no-attributes"
    TEMPLATE = "template"
    NO_TARGET = "no-target"

    def __str__(self) -> str:
        return str(self.value)

    @property
    def bad(self) -> bool:
        """True where the row does not have the format, False where it was dropped on purpose."""
        return self in _BAD

    @property
    def description(self) -> str:
        """Half a sentence for a report."""
        return _BAD[self] if self in _BAD else _DROPPED[self]


_BAD = {
    Reason.NOT_JSON: "the line is not valid JSON",
    Reason.NOT_AN_OBJECT: "the row is not an object with columns",
    Reason.MISSING_COLUMN: "a column of the format is missing",
    Reason.WRONG_TYPE: "a column holds another type than the format has",
    Reason.WRONG_ROLES: "an unknown role, or roles in an order that makes no conversation",
    Reason.NO_PROMPT: "no prompt is left that all answers share",
    Reason.BAD_LABEL: "a label, score or rating lies outside its domain",
}
_DROPPED = {
    Reason.EMPTY: "an answer is blank",
    Reason.UNRATED: "an answer has no rating",
    Reason.TIE: "the answers are rated alike",
    Reason.IDENTICAL: "two answers are the same",
    Reason.DIFFERENT_TURNS: "the conversations part before their last message",
    Reason.TOO_LONG: "longer than the token limit",
    Reason.DUPLICATE: "an earlier row is the same",
    Reason.BELOW_MINIMUM: "too few answers, or a preference weaker than asked for",
    Reason.NO_ATTRIBUTES: "none of the attributes that the model predicts",
    Reason.TEMPLATE: "the chat template does not keep what it wrote before",
    Reason.NO_TARGET: "no token is left to learn from",
}


class RowError(ValueError):
    """One row cannot be used.

    Args:
        reason: The kind of trouble, which reports count by.
        detail: One line that names the column, what was found (a type, or a short label or role, never the text of
            a row) and what is accepted.
        group: The answers of a row that was dropped only for carrying no usable preference: they can be scored all
            the same. None where the row lacks the format.
    """

    def __init__(self, reason: Reason, detail: str, group: Group | None = None) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = " ".join(detail.split())
        self.group = group

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
