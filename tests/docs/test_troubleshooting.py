"""Every message that the page on troubleshooting quotes is one that the program says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest
from shown_commands import ROOT

OF_OTHERS = {"ImportError: libGL.so.1": "OpenCV's own"}
"""Messages that come from elsewhere."""

VALUE = "\0"
"""Stands for what a message has in the place of an expression."""


def quoted() -> list[str]:
    """The messages that are explained: between backticks, in the lines above an explanation."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(`[^\n]*)\n: ", text, re.MULTILINE)
    return [message for term in terms for message in re.findall(r"`([^`]+)`", term)]


@cache
def templates() -> tuple[str, ...]:
    """All texts of the package that are no docstrings, those of one expression put together."""
    found: list[str] = []
    for file in sorted((ROOT / "xrlhf").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        explaining = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found += [text for node in ast.walk(tree) if id(node) not in explaining for text in texts_of(node)]
    return tuple(dict.fromkeys(found))


def texts_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        # Loggers fill values in by a percent sign.
        yield re.sub(r"%[.\d]*[dfgs]", VALUE, node.value)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)


def letters_said(text: str, template: str) -> int:
    """How many characters of ``text`` a template says itself, the others being its values; -1 where it cannot say it.

    ``text`` may begin and end anywhere in the template.
    """
    best = [0] * (len(template) + 1)
    for position in range(len(text) + 1):
        # What is at hand already may go on behind a value that is empty or over.
        for place, sign in enumerate(template):
            if sign == VALUE:
                best[place + 1] = max(best[place + 1], best[place])
        if position == len(text):
            break
        following = [-1] * (len(template) + 1)
        for place, sign in enumerate(template):
            if best[place] < 0:
                continue
            if sign == VALUE:
                following[place] = max(following[place], best[place])
            elif sign == text[position]:
                following[place + 1] = best[place] + 1
        best = following
    return max(best)


def is_said(message: str) -> bool:
    """Whether each part of a message, between its dots, is mostly the words of some text of the package."""
    parts = [re.sub(r"\b[A-Z_]+\b", VALUE, part.strip()) for part in message.split("...")]
    words = [re.findall(r"[a-z]+", part) for part in parts]
    told = [(part, max(of, key=len)) for part, of in zip(parts, words, strict=True) if of]
    return bool(told) and all(
        any(2 * letters_said(part, text) >= len(part) for text in templates() if longest in text)
        for part, longest in told
    )


@pytest.mark.parametrize(
    ("text", "template", "letters"),
    [
        ("step 3: loss nan", "step \0: loss \0", 12),
        ("loss nan", "step \0: loss \0", 5),
        ("is damaged", "checkpoint \0 is damaged", 10),
        ("is broken", "it is damaged", -1),
        ("anything", "\0", 0),
        ("a\0b", "ab", -1),
    ],
)
def test_how_a_message_is_found(text: str, template: str, letters: int) -> None:
    assert letters_said(text, template) == letters


def test_a_message_of_nobody_is_noticed() -> None:
    assert not is_said("the tokenizer ... has no chat templates at all")


@pytest.mark.parametrize("message", quoted())
def test_messages_are_the_programs_own(message: str) -> None:
    assert is_said(message) or message in OF_OTHERS


def test_there_are_messages() -> None:
    assert len(quoted()) > 20
