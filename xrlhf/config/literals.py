"""What a recipe may hold, and how classes and functions become names."""

from __future__ import annotations

import enum
import functools
import os
import reprlib
from collections.abc import Iterable
from typing import Any

from xrlhf.config.resolve import dotted_name
from xrlhf.errors import ConfigError

__all__ = ["to_literals"]

_SCALARS = (type(None), bool, int, float, str)


def to_literals(value: Any, path: str) -> Any:
    """A fresh copy of ``value`` that holds only literals: classes and functions become their dotted names.

    Args:
        value: Anything a recipe's names may be bound to.
        path: Where the value stands, such as ``model.loss``, for messages.

    Returns:
        Numbers, strings, booleans, None, and lists, tuples and dicts of them.

    Raises:
        ConfigError: Something inside is neither a literal nor importable by name.
    """
    if type(value) in _SCALARS:
        return value
    if type(value) is list or type(value) is tuple:
        return type(value)(to_literals(item, f"{path}.{i}") for i, item in enumerate(value))
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise ConfigError(f"{path} has the key {key!r} ({type(key).__name__}); keys are strings or integers")
        return {key: to_literals(item, f"{path}.{key}") for key, item in value.items()}
    if _is_named(value):
        try:
            return dotted_name(value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    raise ConfigError(
        f"{path} is {reprlib.repr(value)} ({_qualified(type(value))}), which a recipe cannot hold; {_hint(value)}"
    )


def _is_named(value: Any) -> bool:
    """True for classes and functions, but not for the classes that stand for number types."""
    return callable(value) and hasattr(value, "__qualname__") and not _is_numpy_scalar_type(value)


def _is_numpy_scalar_type(value: Any) -> bool:
    return isinstance(value, type) and any(_qualified(base) == "numpy.generic" for base in value.__mro__)


def _qualified(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _hint(value: Any) -> str:
    """What to write instead of a value that a recipe cannot hold."""
    kind = _qualified(type(value))
    if kind in ("torch.dtype", "torch.device"):
        return f"write its name: {str(value).removeprefix('torch.')!r}"
    if _is_numpy_scalar_type(value) or kind.startswith(("numpy.dtype", "numpy.dtypes.")):
        return f"write its name: {getattr(value, 'name', None) or value.__name__!r}"
    if kind.startswith("numpy.") or kind in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        return "write a plain number or list, for instance with .tolist()"
    if isinstance(value, os.PathLike):
        return f"write a string: {os.fspath(value)!r}"
    if isinstance(value, enum.Enum):
        return f"write its value: {value.value!r}"
    if isinstance(value, functools.partial):
        return "write a dict with type=FUNCTION and the arguments beside it"
    if isinstance(value, (str, int, float, list, tuple)):
        return f"turn it into a plain {next(c.__name__ for c in type(value).__mro__ if c.__module__ == 'builtins')}"
    if isinstance(value, Iterable) and type(value).__module__ == "builtins" and not isinstance(value, bytes):
        return "write a list"
    if type(value).__module__ not in ("builtins", "types"):
        return f"write dict(type={type(value).__qualname__}, ...) to have it built when the run starts"
    return "only numbers, strings, booleans, None, lists, tuples, dicts, and classes and functions by name are allowed"
