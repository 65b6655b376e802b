"""A check of a whole recipe before anything is built."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from xrlhf.config.resolve import find_component
from xrlhf.config.signature import Signature, read_annotation, read_signature
from xrlhf.config.suggest import nearest_clause
from xrlhf.errors import ConfigError

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["check_recipe"]

_NOT_ARGUMENTS = ("type", "_scope_")


def check_recipe(cfg: Config | Mapping[str, Any], injected: Mapping[str, Iterable[str]] | None = None) -> None:
    """Checks every dict with ``type`` in a recipe against the signature of what it builds, building nothing.

    Where a part takes a plain dict (an argument annotated as a mapping, or one behind ``**kwargs``), ``type`` may be a
    word of that dict's own, as in ``rope_scaling=dict(type="linear", factor=2.0)``: a plain word that no registry
    knows is left alone there.

    Args:
        cfg: The recipe.
        injected: Arguments that a builder adds, so that they may be missing: by a pattern such as
            ``"optim_wrapper.optimizer"``, ``"*.sampler"`` or ``"torch.optim.*"`` that is matched against the path of
            the dict and against its ``type``, the names of the arguments.

    Raises:
        ConfigError: One line for each problem: a ``type`` that cannot be found, an unknown or a missing argument.
    """
    problems = [
        problem
        for name, value in cfg.items()
        for problem in _problems_within(value, str(name), injected or {}, may_be_plain=False)
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _problems_within(
    value: Any, path: str, injected: Mapping[str, Iterable[str]], *, may_be_plain: bool
) -> Iterator[str]:
    """The problems of ``value`` and of all that it holds, parents before their children."""
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _problems_within(item, f"{path}.{index}", injected, may_be_plain=may_be_plain)
    if not isinstance(value, Mapping):
        return
    signature = None
    if "type" in value:
        kind = value["type"]
        try:
            component = find_component(kind) if isinstance(kind, str) else kind
        except ConfigError as error:
            if not (may_be_plain and isinstance(kind, str) and "." not in kind):
                yield f"{path}: type {error}"
        else:
            signature = read_signature(component) if callable(component) else None
            yield from (f"{path}: {problem}" for problem in _problems(path, value, component, signature, injected))
    for key, item in value.items():
        plain = may_be_plain if signature is None else _takes_plain_dict(signature, key)
        yield from _problems_within(item, f"{path}.{key}", injected, may_be_plain=plain)


def _takes_plain_dict(signature: Signature, key: Any) -> bool:
    """Whether the argument ``key`` is handed on as it is, not built: it says that it is a mapping, or has no name."""
    if key not in signature.parameters:
        return signature.takes_any
    annotation = signature.parameters[key].annotation
    return annotation is not inspect.Parameter.empty and read_annotation(annotation).is_mapping


def _problems(
    path: str,
    part: Mapping[str, Any],
    component: Any,
    signature: Signature | None,
    injected: Mapping[str, Iterable[str]],
) -> list[str]:
    kind = part["type"]
    if not callable(component):
        return [f"type {kind!r} is neither a class nor a function"]
    if signature is None:
        return []
    name = getattr(component, "__qualname__", str(kind))
    taken_before = _taken_by_builders(component)
    problems = []
    for key in part:
        if key in _NOT_ARGUMENTS or key in signature.parameters or key in taken_before or signature.takes_any:
            continue
        known = [*signature.parameters, *taken_before]
        problems.append(f"{name} has no argument {key!r}{nearest_clause(str(key), known)}")
    added = {
        argument
        for pattern, arguments in injected.items()
        if fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(str(kind), pattern)
        for argument in arguments
    }
    problems += [
        f"{name} needs the argument {key!r}" for key in signature.required if key not in part and key not in added
    ]
    return problems


def _taken_by_builders(component: Any) -> tuple[str, ...]:
    """Keys that mmengine's builders take out of the dict before they call the constructor."""
    from mmengine.hooks import Hook
    from mmengine.optim import OptimWrapper, _ParamScheduler

    if isinstance(component, type):
        if issubclass(component, Hook):
            return ("priority",)
        if issubclass(component, OptimWrapper):
            return ("constructor", "paramwise_cfg")
        if issubclass(component, _ParamScheduler):
            return ("convert_to_iter_based",)
    return ()
