"""A recipe: a Python file that is read into a :class:`mmengine.config.Config` of literals.

The file is executed with its real imports, so that a misspelt part fails at once and an editor can follow it. What it
assigns at the top level is the recipe; classes and functions become their dotted names, which mmengine's registries
resolve again. Overrides take effect where a name is assigned, so that ``lr=1e-5`` also changes all that the file
computes from ``lr`` further down.
"""

from __future__ import annotations

import ast
import builtins
import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, TypeGuard

from xrlhf.config.literals import to_literals
from xrlhf.config.neighbours import (
    FOLDERS_NAME,
    find_neighbour,
    folder_of_values,
    folders_needed,
    folders_used,
    make_importable,
    modules_named,
    origin_of,
)
from xrlhf.config.overrides import Override, apply_overrides, check_override, parse_overrides, rebind
from xrlhf.config.shipped import SHIPPED_PREFIX, shipped_dir
from xrlhf.config.suggest import nearest_clause
from xrlhf.errors import ConfigError

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["base_entries", "load_recipe", "locate_base"]

BASE_NAME = "_base_"
DELETE_KEY = "_delete_"
_REBIND_NAME = "__rebind__"
_RESERVED = {
    **dict.fromkeys(
        ("filename", "text", "pretty_text", "env_variables"), "mmengine's Config keeps that name to itself"
    ),
    **dict.fromkeys(("dict", "float"), "it would hide Python's own"),
}


def load_recipe(path: str | os.PathLike[str], options: Sequence[str] = ()) -> Config:
    """Reads a recipe, the recipes it inherits from, and overrides, into a Config of literals.

    A recipe assigns names at the top level; names that begin with an underscore stay private. ``_base_`` names one or
    several files that it inherits from: a path relative to the recipe, an absolute one, or ``xrlhf::_base_/runtime.py``
    for a shipped one. Dicts merge key by key, the recipe's own values win, and ``_delete_=True`` in a dict drops what
    it would inherit. The values of the bases can be read as ``_base_.NAME``.

    Modules that lie beside the recipe can be imported; ``module_folders = ["FOLDER", ...]`` names further folders,
    relative to the recipe (see :mod:`xrlhf.config.neighbours`).

    Args:
        path: A ``.py`` file.
        options: Overrides as ``path=value`` texts, applied in the order given (see
            :func:`xrlhf.config.overrides.parse_value` for how values are read). Each must name something that the
            recipe has with the earlier ones applied, or a parameter of what the dict around it builds.

    Returns:
        The recipe; classes and functions are dotted names, tuples stay tuples, ``filename`` is the absolute path. Where
        it uses modules beside it, ``module_folders`` holds their folders, so that its dump finds them from anywhere.

    Raises:
        ConfigError: The file cannot be read or fails (``file:line: reason``), holds what a recipe cannot hold, or an
            override does not fit.
    """
    from mmengine.config import Config

    file = Path(os.path.abspath(path))
    text = _read(file)
    values = _evaluate(file, [])
    applied: list[Override] = []
    for override in parse_overrides(options):
        kept = [earlier for earlier in applied if not override.covers(earlier)]
        if len(kept) < len(applied):
            values = _overridden(file, kept)
        applied = [*kept, check_override(override, values)]
        values = _overridden(file, applied)
    if applied and (folder := folder_of_values(values, file)) is not None:
        values[FOLDERS_NAME] = list(dict.fromkeys([*values.get(FOLDERS_NAME, []), str(folder)]))
    return Config(values, cfg_text=text, filename=str(file), format_python_code=False)


def base_entries(tree: ast.Module, file: Path) -> list[tuple[str, ast.Constant]]:
    """The strings that ``_base_`` is assigned in a recipe, with where each is written; empty where there is none.

    Raises:
        ConfigError: ``_base_`` is assigned something else than a string or a list of strings.
    """
    statements = [statement for statement in tree.body if _assigns_base(statement)]
    if not statements:
        return []
    if len(statements) > 1:
        raise ConfigError(f"{file}:{statements[1].lineno}: _base_ is assigned twice: put all bases into one list")
    value = statements[0].value
    entries = value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
    constants = [(e.value, e) for e in entries if isinstance(e, ast.Constant) and isinstance(e.value, str)]
    if len(constants) < len(entries):
        raise ConfigError(f"{file}:{value.lineno}: _base_ must be a string or a list of strings")
    return constants


def locate_base(name: str, file: Path) -> Path:
    """The file that an entry of ``_base_`` in the recipe ``file`` means, whether it exists or not."""
    if name.startswith(SHIPPED_PREFIX):
        return shipped_dir() / name.removeprefix(SHIPPED_PREFIX)
    return Path(os.path.abspath(file.parent / name))


def _read(file: Path) -> str:
    if file.suffix != ".py":
        raise ConfigError(f"{file}: a recipe is a Python file; its name must end in .py")
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; `xrlhf list-cfg` lists the shipped recipes") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _overridden(file: Path, overrides: Sequence[Override]) -> dict[str, Any]:
    try:
        values = _evaluate(file, overrides)
    except ConfigError as error:
        if not overrides:
            raise
        raise ConfigError(f"{error} (with --cfg-options {' '.join(o.text for o in overrides)})") from error
    return apply_overrides(values, overrides)


def _evaluate(file: Path, overrides: Sequence[Override], heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The literals that a recipe and its bases assign.

    Args:
        file: The recipe.
        overrides: Applied wherever a name that they begin at is assigned.
        heirs: The recipes that are being read because they inherit from this one.
    """
    tree = _parse(file)
    folders = folders_needed(tree, file)
    make_importable(folders, modules_named(tree, file.parent), file)
    inherited: dict[str, Any] = {}
    inherited_folders: list[str] = []
    for name, node in base_entries(tree, file):
        base = locate_base(name, file)
        where = f"{file}:{node.lineno}: _base_ {name!r}"
        if base == file or base in heirs:
            raise ConfigError(f"{where} makes the recipe inherit from itself")
        if not base.is_file():
            shipped = "" if name.startswith(SHIPPED_PREFIX) else _shipped_hint(name)
            raise ConfigError(f"{where} not found: there is no {base}{shipped}")
        values = _evaluate(base, overrides, (*heirs, file))
        inherited_folders += values.pop(FOLDERS_NAME, [])
        twice = sorted(inherited.keys() & values.keys())
        if twice:
            raise ConfigError(f"{where} assigns {', '.join(twice)}, which another base assigns too")
        inherited.update(values)
    own = _run(tree, file, inherited, overrides)
    listed = folders if own.pop(FOLDERS_NAME, None) is not None else folders_used(own, folders)
    try:
        values = _without_delete_keys(_merge(own, inherited, ""))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    if listed or inherited_folders:
        values[FOLDERS_NAME] = list(dict.fromkeys([*map(str, listed), *inherited_folders]))
    return values


def _shipped_hint(name: str) -> str:
    try:
        is_shipped = (shipped_dir() / name).is_file()
    except ConfigError:
        return ""
    return f"; for the shipped one write {SHIPPED_PREFIX + name!r}" if is_shipped else ""


def _parse(file: Path) -> ast.Module:
    text = _read(file)
    try:
        tree = ast.parse(text, filename=str(file))
    except SyntaxError as error:
        raise ConfigError(f"{file}:{error.lineno or 1}: SyntaxError: {error.msg}") from None
    except ValueError as error:
        raise ConfigError(f"{file}:1: {error}") from None
    for node in ast.walk(tree):
        refusal = _refusal(node)
        if refusal:
            raise ConfigError(f"{file}:{node.lineno}: {refusal}")  # type: ignore[attr-defined]
    return tree


def _refusal(node: ast.AST) -> str | None:
    """Why a recipe may not contain this piece of Python, or None where it may."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return f"a recipe defines no functions: put {node.name!r} into a module and import it"
    if isinstance(node, ast.ClassDef):
        return f"a recipe defines no classes: put {node.name!r} into a module and import it"
    if isinstance(node, ast.Lambda):
        return "a recipe defines no functions: write the lambda as a function in a module and import it"
    if isinstance(node, ast.ImportFrom) and any(alias.name == "read_base" for alias in node.names):
        return "read_base is not supported: write _base_ = 'FILE.py', or import names from a module"
    if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
        return "'import *' hides what is used: import names one by one, or inherit with _base_ = 'FILE.py'"
    return None


class _Assignments(ast.NodeTransformer):
    """Finds the names a recipe assigns and has each pass through the overrides where it is assigned."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: dict[str, int] = {}

    def visit_Assign(self, node: ast.Assign) -> Any:
        return self._rebound(node, node.targets)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        return self._rebound(node, [node.target] if node.value else [])

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        return self._rebound(node, [node.target])

    def _rebound(self, node: ast.stmt, targets: Sequence[ast.expr]) -> list[ast.stmt]:
        statements: list[ast.stmt] = [node]
        for name, is_item in _names(targets):
            if name == BASE_NAME:
                raise ConfigError(f"{self.file}:{node.lineno}: write _base_ = 'FILE.py' by itself, at the top level")
            if not is_item:
                self.lines[name] = node.lineno
            source = f"{name} = {_REBIND_NAME}({name!r}, {name})"
            for again in ast.parse(source).body:
                for part in ast.walk(again):
                    ast.copy_location(part, node)
                statements.append(again)
        return statements


def _names(targets: Sequence[ast.expr]) -> Iterator[tuple[str, bool]]:
    """The names that assignment targets bind, and those (True) of which they change an item or attribute."""
    for target in targets:
        if isinstance(target, ast.Name):
            yield target.id, False
        elif isinstance(target, (ast.Tuple, ast.List)):
            yield from _names(target.elts)
        elif isinstance(target, ast.Starred):
            yield from _names([target.value])
        else:
            inner: ast.expr = target
            while isinstance(inner, (ast.Subscript, ast.Attribute)):
                inner = inner.value
            if isinstance(inner, ast.Name):
                yield inner.id, True


def _assigns_base(statement: ast.stmt) -> TypeGuard[ast.Assign]:
    return (
        isinstance(statement, ast.Assign)
        and len(statement.targets) == 1
        and isinstance(statement.targets[0], ast.Name)
        and statement.targets[0].id == BASE_NAME
    )


def _run(tree: ast.Module, file: Path, inherited: dict[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """Executes a recipe's own statements and returns what they assign, as literals."""
    assignments = _Assignments(file)
    tree.body = [statement for statement in tree.body if not _assigns_base(statement)]
    tree = assignments.visit(tree)
    namespace: dict[str, Any] = {
        "__name__": "__recipe__",
        "__file__": str(file),
        "__builtins__": builtins,
        _REBIND_NAME: lambda name, value: rebind(name, value, overrides),
    }
    if inherited:
        from mmengine.config import ConfigDict

        namespace[BASE_NAME] = ConfigDict(copy.deepcopy(inherited))
    try:
        exec(compile(tree, str(file), "exec"), namespace)
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split())
        if not isinstance(error, ConfigError):
            message = f"{type(error).__name__}: {message}{_import_hint(error, file)}"
        if isinstance(error, NameError) and error.name:
            message += nearest_clause(error.name, (n for n in namespace if not n.startswith("__")))
        raise ConfigError(f"{file}:{_line_of(error.__traceback__, file)}: {message}") from error
    values = {}
    for name, line in assignments.lines.items():
        if name.startswith("_") or name not in namespace or isinstance(namespace[name], ModuleType):
            continue
        if name in _RESERVED:
            raise ConfigError(f"{file}:{line}: the name {name!r} is reserved ({_RESERVED[name]}): choose another")
        try:
            values[name] = to_literals(namespace[name], name)
        except ConfigError as error:
            raise ConfigError(f"{file}:{line}: {error}") from None
    return values


def _line_of(traceback: TracebackType | None, file: Path) -> int:
    """The recipe's line that was being executed when an error rose."""
    line = 1
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(file):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _import_hint(error: BaseException, file: Path) -> str:
    if isinstance(error, ImportError) and error.name:
        top = error.name.partition(".")[0]
        ours, taken = find_neighbour(file.parent, top), origin_of(top)
        if ours and taken and taken != ours:
            return f"; Python takes {taken} before {ours}: rename yours"
    if isinstance(error, ImportError) and "relative import" in str(error):
        return "; write the full name of the module, or inherit with _base_ = 'FILE.py'"
    return ""


def _merge(own: dict[str, Any], inherited: dict[str, Any], path: str) -> dict[str, Any]:
    """``inherited`` with ``own`` laid over it, dict by dict."""
    merged = dict(inherited)
    for key, value in own.items():
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict) and key in inherited and not value.get(DELETE_KEY, False):
            if not isinstance(inherited[key], dict):
                raise ConfigError(
                    f"{inner} is a dict, but its base has {inherited[key]!r} ({type(inherited[key]).__name__}) there; "
                    f"write {DELETE_KEY}=True in the dict to drop the base's value"
                )
            value = _merge(value, inherited[key], inner)
        merged[key] = value
    return merged


def _without_delete_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_delete_keys(item) for key, item in value.items() if key != DELETE_KEY}
    if isinstance(value, (list, tuple)):
        return type(value)(_without_delete_keys(item) for item in value)
    return value
