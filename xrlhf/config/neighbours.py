"""Modules of the user's own that lie beside a recipe, or in folders that it names.

A recipe may import ``my_maps.py`` from its own folder, as a script may. The folder goes to the *end* of ``sys.path``,
so that nothing in it can take the place of an installed package, and only where the recipe uses a module in it.
Processes started later have it too: the launcher's read the recipe again, tokenising ones are given ``sys.path``.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xrlhf.config.paths import walk
from xrlhf.errors import ConfigError

__all__ = [
    "FOLDERS_NAME",
    "find_neighbour",
    "folder_entries",
    "folder_of_values",
    "folders_needed",
    "folders_used",
    "make_importable",
    "modules_named",
    "origin_of",
]

FOLDERS_NAME = "module_folders"
"""What a recipe assigns to name further folders of modules; a loaded recipe holds them as absolute paths."""

_added: list[str] = []


def folder_entries(tree: ast.Module, file: Path) -> ast.List | ast.Tuple | None:
    """The list that ``module_folders`` is assigned in a recipe; None where it is not.

    Raises:
        ConfigError: It is assigned something else than a list of strings, twice, or not at the top level.
    """
    found = None
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name) or node.id != FOLDERS_NAME or not isinstance(node.ctx, ast.Store):
            continue
        statement = next((s for s in tree.body if isinstance(s, ast.Assign) and s.targets == [node]), None)
        value = None if statement is None or found is not None else statement.value
        if not isinstance(value, (ast.List, ast.Tuple)) or not all(
            isinstance(entry, ast.Constant) and isinstance(entry.value, str) for entry in value.elts
        ):
            raise ConfigError(
                f'{file}:{node.lineno}: write {FOLDERS_NAME} = ["FOLDER", ...] once, at the top level, with plain '
                "strings"
            )
        found = value
    return found


def folders_needed(tree: ast.Module, file: Path) -> list[Path]:
    """The folders whose modules a recipe uses: its own where it names a module there, and those it lists.

    Raises:
        ConfigError: A folder that it lists does not exist.
    """
    own = file.parent
    folders = [own] if any(_is_ours(own, top) for top in modules_named(tree, own)) else []
    entries = folder_entries(tree, file)
    for entry in entries.elts if entries is not None else ():
        assert isinstance(entry, ast.Constant)
        folder = Path(os.path.abspath(own / Path(str(entry.value)).expanduser()))
        if not folder.is_dir():
            raise ConfigError(f"{file}:{entry.lineno}: {FOLDERS_NAME}: there is no folder {folder}")
        folders.append(folder)
    return list(dict.fromkeys(folders))


def folders_used(values: Any, folders: Iterable[Path]) -> list[Path]:
    """Those of ``folders`` that a dotted name anywhere in a recipe's values is imported from."""
    names = {value for _, value in walk(values) if isinstance(value, str)}
    return [folder for folder in folders if any(_comes_from(folder, top) for n in names for top in _top_of(n, folder))]


def folder_of_values(values: Any, file: Path) -> Path | None:
    """The recipe's folder, made importable, where a dotted name in its values means a module there."""
    folder = file.parent
    tops = {top for _, value in walk(values) for top in _top_of(value, folder)}
    if not any(_is_ours(folder, top) for top in tops):
        return None
    make_importable([folder], tops, file)
    return folder


def find_neighbour(folder: Path, top: str) -> Path | None:
    """The module or package called ``top`` in ``folder``."""
    module, package = folder / f"{top}.py", folder / top
    if module.is_file():
        return module
    return package if package.is_dir() and any(package.glob("*.py")) else None


def make_importable(folders: Iterable[Path], tops: Iterable[str], file: Path) -> None:
    """Puts folders at the end of ``sys.path``.

    Args:
        folders: Absolute paths.
        tops: Modules that the recipe names.
        file: The recipe, for messages.

    Raises:
        ConfigError: A module of that name was imported from beside another recipe in this process.
    """
    tops = list(tops)
    for folder in folders:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
            _added.append(str(folder))
            importlib.invalidate_caches()
        for top in tops:
            ours, found = find_neighbour(folder, top), origin_of(top)
            if ours and found and not _comes_from(folder, top) and str(found.parent) in _added:
                raise ConfigError(
                    f"{file}: the module {top!r} is {ours} here, and this process has imported another of that name, "
                    f"{found}, for another recipe: rename one of them, or use two processes"
                )


def origin_of(top: str) -> Path | None:
    """The file or folder that ``import top`` takes; None where there is none."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin else None


def modules_named(tree: ast.Module, folder: Path) -> list[str]:
    """The top-level modules that a recipe in ``folder`` imports, or names in dotted strings."""
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0]: None for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found[node.module.partition(".")[0]] = None
        elif isinstance(node, ast.Constant):
            found |= dict.fromkeys(_top_of(node.value, folder))
    return list(found)


def _top_of(value: Any, folder: Path) -> list[str]:
    """The top-level module of a dotted name; nothing for any other value, such as the name of a file in ``folder``."""
    parts = value.split(".") if isinstance(value, str) else []
    is_dotted = len(parts) > 1 and all(part.isidentifier() for part in parts)
    return parts[:1] if is_dotted and not (folder / value).exists() else []


def _is_ours(folder: Path, top: str) -> bool:
    """Whether ``folder`` has a module of that name, and no other comes before it, or one of another recipe."""
    if find_neighbour(folder, top) is None:
        return False
    found = origin_of(top)
    return found is None or _comes_from(folder, top) or str(found.parent) in _added


def _comes_from(folder: Path, top: str) -> bool:
    ours, found = find_neighbour(folder, top), origin_of(top)
    return ours is not None and found is not None and found.resolve() == ours.resolve()
