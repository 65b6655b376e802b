"""A check of a whole recipe before anything is built."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from xrlhf.config.paths import walk
from xrlhf.config.resolve import find_component
from xrlhf.config.signature import read_signature
from xrlhf.config.suggest import nearest_clause
from xrlhf.errors import ConfigError

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["check_recipe"]

_NOT_ARGUMENTS = ("type", "_scope_")


def check_recipe(cfg: Config | Mapping[str, Any], injected: Mapping[str, Iterable[str]] | None = None) -> None:
    """Checks every dict with ``type`` in a recipe against the signature of what it builds, building nothing.

    Args:
        cfg: The recipe.
        injected: Arguments that a builder adds, so that they may be missing: by a pattern such as
            ``"optim_wrapper.optimizer"``, ``"*.sampler"`` or ``"torch.optim.*"`` that is matched against the path of
            the dict and against its ``type``, the names of the arguments.

    Raises:
        ConfigError: One line for each problem: a ``type`` that cannot be found, an unknown or a missing argument.
    """
    problems = [
        f"{path}: {problem}"
        for path, value in walk(dict(cfg.items()))
        if isinstance(value, Mapping) and "type" in value
        for problem in _problems(path, value, injected or {})
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _problems(path: str, part: Mapping[str, Any], injected: Mapping[str, Iterable[str]]) -> list[str]:
    kind = part["type"]
    try:
        component = find_component(kind) if isinstance(kind, str) else kind
    except ConfigError as error:
        return [f"type {error}"]
    if not callable(component):
        return [f"type {kind!r} is neither a class nor a function"]
    signature = read_signature(component)
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
