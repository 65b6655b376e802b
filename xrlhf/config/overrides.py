"""Overrides of a recipe from the command line: ``--cfg-options lr=1e-5 model.loss.gamma=2``.

An override must name a path that the recipe has, or a parameter of the class or function that the dict around it
builds, and its value must agree in type with what stands there. Otherwise a misspelt name would be a new key that
nobody reads.
"""

from __future__ import annotations

import ast
import inspect
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xrlhf.config.paths import Key, find, replace_at, value_at, walk
from xrlhf.config.resolve import find_component
from xrlhf.config.signature import Annotation, Signature, read_annotation, read_signature
from xrlhf.config.suggest import nearest
from xrlhf.errors import ConfigError

__all__ = ["Override", "apply_overrides", "check_override", "parse_overrides", "parse_value", "rebind"]

_WORDS = {"true": True, "false": False, "none": None}
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_NON_FINITE = ("inf", "+inf", "-inf", "nan")
_ABSENT = object()


@dataclass(frozen=True)
class Override:
    """One ``path=value`` of the command line.

    Args:
        path: The parts of the dotted path.
        value: The value, parsed.
        text: As it was typed, for messages.
    """

    path: tuple[str, ...]
    value: Any
    text: str

    def covers(self, earlier: Override) -> bool:
        """True where this override, coming later, leaves nothing of ``earlier``."""
        return earlier.path[: len(self.path)] == self.path


def parse_overrides(options: Iterable[str]) -> list[Override]:
    """Overrides from their ``path=value`` texts, in the order given.

    Args:
        options: Such as ``["lr=1e-5", "train.sources.0.path=/data/x.jsonl", "betas=(0.9, 0.95)"]``; the first ``=``
            ends the path.

    Raises:
        ConfigError: A text has no ``=``, or an empty part in its path.
    """
    overrides = []
    for text in options:
        path, equals, value = text.partition("=")
        parts = tuple(path.strip().split("."))
        if not equals or not all(parts):
            raise ConfigError(f"--cfg-options {text}: expected path=value, such as lr=1e-5 or model.loss.gamma=2")
        overrides.append(Override(parts, parse_value(value), text))
    return overrides


def parse_value(text: str) -> Any:
    """The value that a text on the command line means.

    Python literals mean themselves, ``true``, ``false`` and ``none`` are known in any case, lists, tuples and dicts
    may hold plain words (``[a,b]``), and everything else is a string as it stands.

    >>> parse_value("1e-5"), parse_value("[a, none]"), parse_value("a,b"), parse_value("'1'")
    (1e-05, ['a', None], 'a,b', '1')
    """
    bare = text.strip()
    if bare.lower() in _WORDS:
        return _WORDS[bare.lower()]
    try:
        value = ast.literal_eval(bare)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    has_bare_commas = len(_split(bare, ",") or [bare]) > 1
    if value is not None and _is_plain(value) and not (isinstance(value, tuple) and has_bare_commas):
        return value
    if bare[:1] in _CLOSING and bare.endswith(_CLOSING[bare[0]]):
        items = _split(bare[1:-1], ",")
        if items is not None:
            return _container(bare[0], items, text)
    return text


def check_override(override: Override, values: dict[str, Any]) -> Override:
    """The override with its value turned into the type that stands at its path.

    Args:
        override: As parsed.
        values: The recipe without it, as literals.

    Raises:
        ConfigError: The path is unknown (the message names the nearest), or the type disagrees.
    """
    keys = find(values, override.path)
    parent_keys = keys[:-1] if keys else find(values, override.path[:-1])
    parent = value_at(values, parent_keys) if parent_keys is not None else None
    signature = _signature_of(parent)
    parameter = signature.parameters.get(str(keys[-1] if keys else override.path[-1])) if signature else None
    if keys is None and parameter is None:
        raise ConfigError(f"--cfg-options {override.text}: {_unknown_path(override.path, values)}")
    current = value_at(values, keys) if keys is not None else _ABSENT
    return replace(override, value=_agree(override, current, parameter, parent))


def rebind(name: str, value: Any, overrides: Sequence[Override]) -> Any:
    """The value of a recipe's top-level ``name`` with all overrides applied that begin at it and find their place."""
    for override in overrides:
        if override.path[0] == name:
            keys = _place({name: value}, override)
            if keys is not None:
                value = replace_at({name: value}, keys, override.value)[name]
    return value


def apply_overrides(values: dict[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """The recipe with checked overrides in place.

    Raises:
        ConfigError: A path is gone, because another override changed what the recipe contains.
    """
    for override in overrides:
        keys = _place(values, override)
        if keys is None:
            raise ConfigError(
                f"--cfg-options {override.text}: with the other overrides {_unknown_path(override.path, values)}"
            )
        values = replace_at(values, keys, override.value)
    return values


def _place(values: dict[str, Any], override: Override) -> tuple[Key, ...] | None:
    """Where the override goes: to what is there, or to a new key of a dict that is there."""
    keys = find(values, override.path)
    if keys is None:
        parent_keys = find(values, override.path[:-1])
        if parent_keys and isinstance(value_at(values, parent_keys), dict):
            keys = (*parent_keys, override.path[-1])
    return keys


def _signature_of(parent: Any) -> Signature | None:
    """The signature of what a dict with ``type`` builds; None where that is unknown."""
    kind = parent.get("type") if isinstance(parent, dict) else None
    if not isinstance(kind, str):
        return None
    try:
        return read_signature(find_component(kind))
    except ConfigError:
        return None


def _agree(override: Override, current: Any, parameter: inspect.Parameter | None, parent: Any) -> Any:
    """The override's value in the type that is wanted, or a ConfigError that says what is wanted."""
    types, takes_none = _expected(current, parameter)
    given = override.value
    if types is None or (given is None and takes_none):
        return given
    for wanted in sorted(types, key=lambda t: t is not type(given)):
        converted = _convert(given, wanted)
        if converted is not _ABSENT:
            return converted
    path, _, typed = override.text.partition("=")
    if current is _ABSENT:
        names = [*sorted(t.__name__ for t in types), *(["None"] if takes_none else [])]
        stands = f"{path} of {parent['type']} takes {' or '.join(names)}"
    else:
        stands = f"{path} is {reprlib.repr(current)} ({type(current).__name__})"
    hint = f"; to give a string, quote it twice: {path}=\"'{typed}'\"" if str in types else ""
    raise ConfigError(
        f"--cfg-options {override.text}: {stands}, but {reprlib.repr(given)} is of type {type(given).__name__}{hint}"
    )


def _expected(current: Any, parameter: inspect.Parameter | None) -> tuple[frozenset[type] | None, bool]:
    """The types accepted at a path (None: any), and whether None is accepted.

    Args:
        current: What stands there, or ``_ABSENT``.
        parameter: The parameter of that name of what the dict around it builds, where there is one.
    """
    annotation = read_annotation(parameter.annotation) if parameter else Annotation()
    default = parameter.default if parameter else inspect.Parameter.empty
    takes_none = annotation.allows_none or default is None
    if current is not _ABSENT and current is not None:
        return annotation.types | {type(current)}, takes_none or isinstance(current, (dict, list, str))
    if not annotation.is_open:
        return annotation.types, takes_none or current is None
    if current is _ABSENT and not takes_none and _is_plain(default):
        return annotation.types | {type(default)}, False
    return None, True


def _convert(value: Any, wanted: type) -> Any:
    """``value`` as ``wanted`` where that changes its writing only, else ``_ABSENT``."""
    if type(value) is wanted:
        return value
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is float and isinstance(value, str) and value.strip().lower() in _NON_FINITE:
        return float(value)
    if wanted is int and type(value) is float and value.is_integer():
        return int(value)
    if (wanted, type(value)) in ((tuple, list), (list, tuple)):
        return wanted(value)
    return _ABSENT


def _unknown_path(path: tuple[str, ...], values: dict[str, Any]) -> str:
    """Says that the recipe has no such path, and what comes near it."""
    name = ".".join(path)
    known = _all_paths(values)
    near = nearest(name, known)
    last_parts = {p.rpartition(".")[2] for p in known}
    same_end = nearest(path[-1], last_parts, limit=1)
    near += [p for p in known if p.rpartition(".")[2] in same_end and p not in near]
    if near:
        return f"the recipe has no {name!r}; nearest: {', '.join(repr(p) for p in near[:3])}"
    depth = max(n for n in range(len(path)) if find(values, path[:n]) is not None)
    inside = ".".join(path[:depth])
    there = [p.rpartition(".")[2] for p in known if p.rpartition(".")[0] == inside]
    return f"the recipe has no {name!r}; {inside or 'it'} has {', '.join(there) or 'no parts'}"


def _all_paths(values: dict[str, Any]) -> list[str]:
    """Every path that may be overridden: what the recipe has, and the parameters of what it builds."""
    paths: dict[str, None] = {}
    for path, value in walk(values):
        paths[path] = None
        signature = _signature_of(value)
        if signature:
            paths.update(dict.fromkeys(f"{path}.{name}" for name in signature.parameters))
    return list(paths)


def _type_names(types: frozenset[type], takes_none: bool) -> str:
    names = sorted(t.__name__ for t in types) + (["None"] if takes_none else [])
    return " or ".join(names)


def _is_plain(value: Any) -> bool:
    """True for what a recipe may hold as a literal."""
    if type(value) in (list, tuple):
        return all(_is_plain(item) for item in value)
    if type(value) is dict:
        return all(type(key) in (str, int) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


def _container(opening: str, items: list[str], text: str) -> Any:
    """The list, tuple or dict of ``items``; ``text`` itself where they do not make one."""
    if opening == "(" and len(items) == 1:
        return text
    if not items[-1].strip():
        items = items[:-1]
    if opening != "{":
        values = [parse_value(item.strip()) for item in items]
        return values if opening == "[" else tuple(values)
    result = {}
    for item in items:
        pair = _split(item, ":")
        if pair is None or len(pair) < 2:
            return text
        key = parse_value(pair[0].strip())
        result[key if type(key) is int else str(key)] = parse_value(":".join(pair[1:]).strip())
    return result


def _split(text: str, separator: str) -> list[str] | None:
    """The parts of ``text`` between separators outside quotes and brackets; None where brackets do not match."""
    parts: list[str] = []
    expected: list[str] = []
    start, quote, before, is_escaped = 0, "", "", False
    for i, char in enumerate(text):
        if quote:
            if char == quote and not is_escaped:
                quote = ""
            is_escaped = char == "\\" and not is_escaped
        elif char in "'\"" and before in ("", separator, ",", ":", *_CLOSING):
            quote = char
        elif char in _CLOSING:
            expected.append(_CLOSING[char])
        elif char in _CLOSING.values():
            if not expected or expected.pop() != char:
                return None
        elif char == separator and not expected:
            parts.append(text[start:i])
            start = i + 1
        before = before if char.isspace() else char
    return None if quote or expected else [*parts, text[start:]]
