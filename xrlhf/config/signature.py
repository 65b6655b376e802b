"""What a constructor or function accepts, read from its signature without calling it."""

from __future__ import annotations

import ast
import collections.abc
import inspect
import types
import typing
from dataclasses import dataclass
from typing import Any, Union

__all__ = ["Annotation", "Signature", "read_annotation", "read_signature"]

_SIMPLE: dict[str, type] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "list": list,
    "List": list,
    "tuple": tuple,
    "Tuple": tuple,
    "dict": dict,
    "Dict": dict,
}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Annotation:
    """What a parameter's annotation says about literals.

    Args:
        types: The literal types it names.
        allows_none: True where it names None.
        is_open: True where it also names something else, or there is no annotation: then ``types`` is not the whole.
        is_mapping: True where it names a mapping, and nothing else but None.
    """

    types: frozenset[type] = frozenset()
    allows_none: bool = False
    is_open: bool = True
    is_mapping: bool = False


@dataclass(frozen=True)
class Signature:
    """The parameters of a constructor or function that may be given by name.

    Args:
        parameters: By name, ``self`` left out.
        takes_any: True where ``**kwargs`` takes further names.
    """

    parameters: dict[str, inspect.Parameter]
    takes_any: bool

    @property
    def required(self) -> list[str]:
        """Names without a default."""
        return [name for name, p in self.parameters.items() if p.default is inspect.Parameter.empty]


def read_signature(obj: Any) -> Signature | None:
    """The signature of a class or function; None where Python cannot tell (some compiled ones)."""
    try:
        found = inspect.signature(obj).parameters
    except (TypeError, ValueError):
        return None
    return Signature(
        parameters={name: p for name, p in found.items() if p.kind in _NAMED},
        takes_any=any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found.values()),
    )


def read_annotation(annotation: Any) -> Annotation:
    """The literal types named by an annotation, be it a type or, under postponed evaluation, its source text."""
    if annotation is inspect.Parameter.empty:
        return Annotation()
    if isinstance(annotation, str):
        try:
            names = list(_union_of_source(ast.parse(annotation.strip(), mode="eval").body))
        except SyntaxError:
            return Annotation()
    else:
        names = list(_union_of_type(annotation))
    return Annotation(
        types=frozenset(_SIMPLE[name] for name in names if name in _SIMPLE),
        allows_none="None" in names,
        is_open=any(name not in _SIMPLE and name != "None" for name in names),
        is_mapping=bool(names) and set(names) - {"None"} <= _MAPPINGS and set(names) != {"None"},
    )


def _union_of_source(node: ast.expr) -> typing.Iterator[str]:
    """The names of a union's members, ``Any`` and the like for everything that is not a literal type."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _union_of_source(node.left)
        yield from _union_of_source(node.right)
    elif isinstance(node, ast.Subscript):
        name = _last_name(node.value)
        if name in ("Optional", "Union"):
            for member in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
                yield from _union_of_source(member)
            if name == "Optional":
                yield "None"
        else:
            yield name
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from _union_of_source(ast.parse(node.value, mode="eval").body)
    elif isinstance(node, ast.Constant):
        yield repr(node.value)
    else:
        yield _last_name(node)


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "Any"


def _union_of_type(annotation: Any) -> typing.Iterator[str]:
    origin = typing.get_origin(annotation)
    if origin is Union or origin is types.UnionType:
        for member in typing.get_args(annotation):
            yield from _union_of_type(member)
    elif annotation is None or annotation is type(None):
        yield "None"
    else:
        kind = origin or annotation
        is_builtin = isinstance(kind, type) and kind.__module__ == "builtins"
        is_mapping = kind in (collections.abc.Mapping, collections.abc.MutableMapping)
        yield kind.__name__ if is_builtin or is_mapping else "Any"
