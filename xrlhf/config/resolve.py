"""From a name in a recipe to the class or function it means, and back."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any

from xrlhf.config.suggest import nearest_clause
from xrlhf.errors import ConfigError

__all__ = ["dotted_name", "find_component", "resolve"]


def resolve(name_or_object: Any) -> Any:
    """The object that a dotted name such as ``"torch.optim.AdamW"`` means.

    Args:
        name_or_object: ``"package.module.attribute"``, attributes of attributes included; anything but a string is
            returned as it is.

    Returns:
        The class, function or value of that name.

    Raises:
        ConfigError: A module or an attribute is missing (the message names the nearest), or importing it failed.
    """
    if not isinstance(name_or_object, str):
        return name_or_object
    name: str = name_or_object
    parts = name.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{name!r} is not a dotted name such as 'package.module.Name'")
    found, used = _longest_module(name, parts)
    for part in parts[used:]:
        owner = ".".join(parts[:used])
        try:
            found = getattr(found, part)
        except AttributeError:
            kind = "module" if isinstance(found, ModuleType) else "class" if inspect.isclass(found) else "object"
            raise ConfigError(
                f"{name!r}: {kind} {owner!r} has no {part!r}{nearest_clause(part, _names_in(found))}"
            ) from None
        except Exception as error:  # modules that load their parts on demand fail here in any way an import can
            raise ConfigError(f"{name!r}: reading {part!r} of {owner!r} failed: {error}") from error
        used += 1
    return found


def dotted_name(obj: Any) -> str:
    """The dotted name that :func:`resolve` turns back into ``obj``.

    Args:
        obj: A class, a function or a class method at the top level of a module or class.

    Raises:
        ConfigError: No import leads back to ``obj``: it is local, defined in the script being run, or renamed.
    """
    if inspect.ismethod(obj) and inspect.isclass(obj.__self__):
        module: Any = obj.__self__.__module__
        qualname: Any = f"{obj.__self__.__qualname__}.{obj.__name__}"
    else:
        module = getattr(obj, "__module__", None)
        qualname = getattr(obj, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or module == "__main__" or "<" in qualname:
        raise ConfigError(f"{obj!r} has no importable name: put it at the top level of a module and import it")
    name = f"{module}.{qualname}"
    found = resolve(name)
    if found is not obj and not (inspect.ismethod(obj) and found == obj):
        raise ConfigError(f"{obj!r} calls itself {name!r}, which is something else: import it under its own name")
    return name


def find_component(name: str) -> Any:
    """The class or function that ``type=name`` builds: a dotted name, or a short name that a registry knows.

    Args:
        name: ``"torch.optim.AdamW"``, ``"CheckpointHook"`` or, with a registry's scope, ``"mmengine.CheckpointHook"``.

    Raises:
        ConfigError: Nothing has that name.
    """
    if "." not in name:
        return _find_registered(name)
    scope, _, short = name.partition(".")
    if "." not in short and scope in ("mmengine", "xrlhf"):
        try:
            return _find_registered(short)
        except ConfigError:
            pass
    return resolve(name)


def _longest_module(name: str, parts: list[str]) -> tuple[ModuleType, int]:
    """The module furthest down the dotted name, and how many parts of the name it takes."""
    for used in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:used])
        try:
            return importlib.import_module(module_name), used
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if missing != module_name and not module_name.startswith(f"{missing}."):
                raise ConfigError(f"{name!r}: importing {module_name!r} failed: {error}") from error
        except Exception as error:
            raise ConfigError(f"{name!r}: importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    raise ConfigError(f"{name!r}: there is no module {parts[0]!r}; is its package installed or on PYTHONPATH?")


def _names_in(owner: Any) -> list[str]:
    names = [name for name in dir(owner) if not name.startswith("_")]
    if isinstance(owner, ModuleType) and hasattr(owner, "__path__"):
        names += [module.name for module in pkgutil.iter_modules(owner.__path__)]
    return names


def _find_registered(name: str) -> Any:
    import mmengine.registry
    import mmengine.runner  # mmengine registers its parts when they are imported

    import xrlhf.registry

    registries = [
        value
        for module in (xrlhf.registry, mmengine.registry)
        for value in vars(module).values()
        if isinstance(value, mmengine.registry.Registry)
    ]
    failures: list[str] = []
    known: list[str] = []
    for registry in dict.fromkeys(registries):
        try:
            found = registry.get(name)
        except ImportError as error:
            failures.append(str(error))
            continue
        # Under an unknown name mmengine looks for a module to import, and would return json for "json".
        if found is not None and not isinstance(found, ModuleType):
            return found
        known += registry.module_dict
    failed = f" (some parts could not be imported: {'; '.join(dict.fromkeys(failures))})" if failures else ""
    raise ConfigError(f"no registry knows {name!r}{failed}{nearest_clause(name, known)}")
