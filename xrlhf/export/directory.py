"""A directory that appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from xrlhf.errors import UserError

__all__ = ["check_new_directory", "loading_call", "new_directory"]


def check_new_directory(path: Path, *, replace: Collection[str] | None = None) -> None:
    """Refuse a place where something stands already, before any work is done for it.

    Args:
        path: Where a result shall be.
        replace: Names of files that may be there and are given up; None gives nothing up.

    Raises:
        UserError: ``path`` exists and is not an empty folder, or holds something besides those files.
    """
    if not path.exists():
        return
    found = sorted(file.name for file in path.iterdir()) if path.is_dir() else None
    if found is None or (found and replace is None):
        raise UserError(f"{path} exists and is not empty: choose another directory, or remove it")
    if others := [name for name in found if name not in (replace or ())]:
        raise UserError(
            f"{path} holds {others[0]!r}, which is no part of what would be replaced: choose another directory"
        )


@contextmanager
def new_directory(path: Path, *, replace: Collection[str] | None = None) -> Iterator[Path]:
    """Yield a folder to write into; it becomes ``path`` only if the block ends without an error.

    Args:
        path: Where the result shall be. An empty folder there is replaced.
        replace: As in :func:`check_new_directory`.

    Raises:
        UserError: ``path`` exists and is not an empty folder, or cannot be written.
    """
    check_new_directory(path, replace=replace)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())
        if path.exists() and not any(path.iterdir()):
            path.rmdir()
        if replace is not None and path.exists():
            # Looked at again: somebody may have put something there meanwhile.
            check_new_directory(path, replace=replace)
            earlier = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            path.rename(earlier)
            try:
                aside.rename(path)
            except OSError:
                earlier.rename(path)
                raise
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            aside.rename(path)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def loading_call(folder: Path, name: str | None = None) -> str:
    """How transformers or peft loads an export, as Python.

    Args:
        folder: The export.
        name: What it is called in the call; its path if None.
    """
    place = repr(str(folder) if name is None else name)
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        task = json.loads(adapter.read_text(encoding="utf-8"))["task_type"]
        if task == "CAUSAL_LM":
            return f"AutoPeftModelForCausalLM.from_pretrained({place})"
        return f"AutoPeftModelForSequenceClassification.from_pretrained({place}, num_labels=1)"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in config:
        auto = next(name for name in config["auto_map"] if name.startswith("AutoModel"))
        return f"{auto}.from_pretrained({place}, trust_remote_code=True)"
    kind = "CausalLM" if config["architectures"][0].endswith("ForCausalLM") else "SequenceClassification"
    return f"AutoModelFor{kind}.from_pretrained({place})"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
