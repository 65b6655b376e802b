"""Imports run one way, and the command line answers before torch is loaded."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "xrlhf"

LEVELS = (
    ("errors", "files", "hub", "version", "structures", "registry", "progress", "preload", "pages"),
    ("config",),
    ("ops", "losses", "devices"),
    ("data",),
    ("models",),
    ("evaluation", "rl"),
    ("engine",),
    ("export", "run_report"),
    ("serving",),
    ("cli",),
)
"""Parts of the package; each may import those of its own line and of the lines above."""

LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
MAY_TOUCH_TORCH_DISTRIBUTED = {"engine", "devices"}


def files() -> Iterator[tuple[Path, str]]:
    """Every file of the package and the part it belongs to; the package's own ``__init__`` has none."""
    for file in sorted(PACKAGE.rglob("*.py")):
        inside = file.relative_to(PACKAGE)
        if inside != Path("__init__.py") and inside.parts[0] != "_configs":
            yield file, inside.with_suffix("").parts[0]


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every module that is imported, wherever it stands, names imported from a package included, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield node.module, node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def parsed() -> list[tuple[Path, str, ast.Module]]:
    return [(file, part, ast.parse(file.read_text(encoding="utf-8"))) for file, part in files()]


def test_every_part_has_its_level() -> None:
    unknown = {part for _, part in files()} - LEVEL_OF.keys()
    assert not unknown, f"say in LEVELS where {unknown} belongs"


def test_there_are_no_relative_imports() -> None:
    relative = [
        f"{file}:{node.lineno}"
        for file, _, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_imports_run_one_way() -> None:
    upward = [
        f"{file.relative_to(ROOT)}:{line}: {part} imports {module}"
        for file, part, tree in parsed()
        for module, line in imports(tree)
        if module.startswith("xrlhf.") and LEVEL_OF.get(module.split(".")[1], 0) > LEVEL_OF[part]
    ]
    assert upward == []


def test_the_check_itself_sees_an_upward_import() -> None:
    tree = ast.parse("def f():\n    from xrlhf.engine import build\n    import xrlhf.cli.main as m\n")
    assert ("xrlhf.engine.build", 2) in list(imports(tree))
    assert ("xrlhf.cli.main", 3) in list(imports(tree))
    assert LEVEL_OF["engine"] > LEVEL_OF["data"]


def test_only_engine_and_devices_know_torch_distributed() -> None:
    elsewhere = [
        f"{file.relative_to(ROOT)}:{line}"
        for file, part, tree in parsed()
        for module, line in imports(tree)
        if f"{module}.".startswith("torch.distributed.") and part not in MAY_TOUCH_TORCH_DISTRIBUTED
    ]
    assert elsewhere == []


def test_every_folder_is_a_package() -> None:
    """A folder without ``__init__.py`` works in a clone and is missing from the wheel."""
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("module", ["xrlhf", "xrlhf.config", "xrlhf.errors", "xrlhf.cli.main"])
def test_what_help_needs_does_not_load_torch(module: str) -> None:
    heavy = ("torch", "transformers", "mmengine", "datasets", "numpy")
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    assert result.stdout == "[]\n"
