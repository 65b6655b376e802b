"""Dotted paths into nested dicts, lists and tuples."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

__all__ = ["Key", "find", "replace_at", "value_at", "walk"]

Key = str | int


def find(container: Any, parts: tuple[str, ...]) -> tuple[Key, ...] | None:
    """The keys and indices that the parts of a dotted path stand for, or None where there is no such path.

    A dict key that holds dots itself is found from several parts joined.
    """
    if not parts:
        return ()
    if isinstance(container, dict):
        for taken in range(1, len(parts) + 1):
            name = ".".join(parts[:taken])
            for key in (name, int(name)) if _is_index(name) else (name,):
                if key in container:
                    rest = find(container[key], parts[taken:])
                    if rest is not None:
                        return (key, *rest)
    elif isinstance(container, (list, tuple)) and _is_index(parts[0]) and int(parts[0]) < len(container):
        rest = find(container[int(parts[0])], parts[1:])
        if rest is not None:
            return (int(parts[0]), *rest)
    return None


def value_at(container: Any, keys: tuple[Key, ...]) -> Any:
    """The value that a path found by :func:`find` leads to."""
    for key in keys:
        container = container[key]
    return container


def replace_at(container: Any, keys: tuple[Key, ...], value: Any) -> Any:
    """``container`` with a copy of ``value`` at ``keys``; only the containers along the way are copied.

    The last key may be new where its container is a dict. A container that already holds the same value is returned
    itself, so that whatever else refers to it keeps doing so.
    """
    if not keys:
        return container if _same(container, value) else copy.deepcopy(value)
    key, rest = keys[0], keys[1:]
    is_new = isinstance(container, dict) and key not in container
    replaced = copy.deepcopy(value) if is_new else replace_at(container[key], rest, value)
    if not is_new and replaced is container[key]:
        return container
    changed: Any = list(container) if isinstance(container, tuple) else copy.copy(container)
    changed[key] = replaced
    return tuple(changed) if isinstance(container, tuple) else changed


def _same(left: Any, right: Any) -> bool:
    """Equality that tells 1 from 1.0 and True, at any depth."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def walk(container: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted path inside ``container`` with its value, parents before their children."""
    if isinstance(container, dict):
        items: list[tuple[Any, Any]] = list(container.items())
    elif isinstance(container, (list, tuple)):
        items = list(enumerate(container))
    else:
        return
    for key, value in items:
        inner = f"{path}.{key}" if path else str(key)
        yield inner, value
        yield from walk(value, inner)


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdigit()
