"""Copies of recipes to start one's own from."""

from __future__ import annotations

import ast
import codecs
import os
from pathlib import Path

from xrlhf.config.neighbours import FOLDERS_NAME, folder_entries, folders_needed
from xrlhf.config.recipe import base_entries, locate_base
from xrlhf.config.shipped import SHIPPED_PREFIX, find_recipe, shipped_dir
from xrlhf.errors import ConfigError

__all__ = ["copy_recipe"]


def copy_recipe(name: str | os.PathLike[str], directory: str | os.PathLike[str] = ".") -> Path:
    """Copies a recipe to ``DIRECTORY/NAME_copy.py``, which runs as it is wherever it lies.

    The text stays as it is but for ``_base_``: a base that is shipped is named from the folder of shipped recipes
    (``xrlhf::_base_/runtime.py``), any other by its absolute path; and for ``module_folders``, which names the folders
    of the modules that the recipe uses from beside it.

    Args:
        name: What :func:`find_recipe` accepts.
        directory: Made where it is missing.

    Returns:
        The path of the copy.

    Raises:
        ConfigError: There is no such recipe, the copy exists already, or it cannot be written.
    """
    source = find_recipe(name)
    target = Path(directory) / f"{source.stem}_copy.py"
    text = _portable_text(source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(text)
    except FileExistsError:
        taken = target if target.exists() else target.parent
        raise ConfigError(f"{taken} exists already and is not overwritten: move it or choose another folder") from None
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror}") from error
    return target


def _portable_text(source: Path) -> bytes:
    source = Path(os.path.abspath(source))
    text = source.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        tree = ast.parse(text, filename=str(source))
    except SyntaxError as error:
        raise ConfigError(f"{source}:{error.lineno or 1}: SyntaxError: {error.msg}") from None
    replaced: list[tuple[ast.expr, str]] = [
        (node, repr(_portable(name, source))) for name, node in base_entries(tree, source)
    ]
    folders = [str(folder) for folder in folders_needed(tree, source)]
    if (listed := folder_entries(tree, source)) is not None:
        replaced.append((listed, repr(folders)))
    elif folders:
        text = text.rstrip() + f"\n\n{FOLDERS_NAME} = {folders!r}\n".encode()
    # From the last to the first, so that the places of those still to come stay right; columns count bytes.
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node, value in sorted(replaced, key=lambda item: (item[0].lineno, item[0].col_offset), reverse=True):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        text = text[:begin] + value.encode() + text[end:]
    return text


def _portable(name: str, source: Path) -> str:
    """How the copy names a base of the original."""
    base = locate_base(name, source).resolve()
    shipped = shipped_dir().resolve()
    return f"{SHIPPED_PREFIX}{base.relative_to(shipped).as_posix()}" if shipped in base.parents else base.as_posix()
