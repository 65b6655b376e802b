"""Checkpoints as transactions: whole or absent, verified on load, and plain enough for ``weights_only=True``.

``iter_N.pth`` is written under another name, flushed to the disk and renamed; ``iter_N.pth.json`` beside it holds its
size and SHA-256 and is in place before the rename. A checkpoint counts only if both agree.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xrlhf.errors import CheckpointError

__all__ = ["CheckpointFile", "find_checkpoints", "load_checkpoint", "newest_valid", "save_checkpoint", "verify"]

logger = logging.getLogger("xrlhf")

FORMAT = 1
LAST = "last_checkpoint"

_NAME = re.compile(r"iter_(\d+)\.pth")
_MANIFEST = ".json"
_ASIDE = ".tmp"


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint file of a run's directory and the optimizer step it was taken after."""

    path: Path
    step: int


class _HashingFile:
    """A file that hashes what is written to it, so a checkpoint need not be read back."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self.size += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        self._file.close()


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state`` to ``path``: either the whole of it, verified by its manifest, or nothing.

    Args:
        state: Tensors and plain values; anything that ``torch.load(weights_only=True)`` would refuse is refused here.
        path: ``.../iter_N.pth``.

    Raises:
        CheckpointError: The disk is full or cannot be written; earlier checkpoints are untouched.
    """
    _refuse_unsafe(state)
    aside = path.with_name(path.name + _ASIDE)
    manifest_aside = path.with_name(path.name + _MANIFEST + _ASIDE)
    file: _HashingFile | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _HashingFile(aside)
        torch.save(dict(state), file)
        digest = file.close()
        with manifest_aside.open("w", encoding="utf-8") as manifest:
            json.dump({"format": FORMAT, "size": file.size, "sha256": digest}, manifest)
            manifest.flush()
            os.fsync(manifest.fileno())
        # Replacing an old checkpoint of the same name: its file must go before its manifest changes.
        path.unlink(missing_ok=True)
        os.replace(manifest_aside, path.with_name(path.name + _MANIFEST))
        os.replace(aside, path)
        _sync_folder(path.parent)
        write_pointer(path)
    except (OSError, RuntimeError) as error:
        if file is not None:
            file.abandon()
        aside.unlink(missing_ok=True)
        manifest_aside.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.is_dir() else 0.0
        raise CheckpointError(
            f"checkpoint {path} could not be written ({error}); {free:,.0f} MiB are free there; "
            "earlier checkpoints are untouched"
        ) from error


def write_pointer(path: Path) -> None:
    """Name the newest checkpoint in ``last_checkpoint``: a relative name, so a run's directory can be moved."""
    aside = path.with_name(LAST + _ASIDE)
    aside.write_text(path.name, encoding="utf-8")
    os.replace(aside, path.with_name(LAST))


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint and its manifest; a failure is a warning, never the end of a run."""
    try:
        path.unlink(missing_ok=True)
        path.with_name(path.name + _MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("old checkpoint %s could not be deleted: %s", path, error)


def find_checkpoints(work_dir: Path) -> list[CheckpointFile]:
    """All checkpoints of a run by name, newest first; whether they are whole is not looked at."""
    found = [
        CheckpointFile(path, int(match.group(1)))
        for path in (work_dir.iterdir() if work_dir.is_dir() else [])
        if (match := _NAME.fullmatch(path.name))
    ]
    return sorted(found, key=lambda item: -item.step)


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if it is whole."""
    if not path.is_file():
        return "the file is missing"
    manifest_path = path.with_name(path.name + _MANIFEST)
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        size, expected = int(manifest["size"]), str(manifest["sha256"])
    except FileNotFoundError:
        return f"{manifest_path.name} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{manifest_path.name} is damaged"
    if path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes in place of {size}"
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return None if digest.hexdigest() == expected else "its content does not match its checksum"


def newest_valid(work_dir: Path) -> CheckpointFile | None:
    """The newest whole checkpoint of a run; damaged ones are passed over with a warning each.

    Raises:
        CheckpointError: There are checkpoints, but none is whole.
    """
    candidates = find_checkpoints(work_dir)
    pointer = work_dir / LAST
    if pointer.is_file():
        named = pointer.read_text(encoding="utf-8").strip()
        if named and not (work_dir / named).exists():
            logger.warning("%s names %s, which is missing; looking for an earlier checkpoint", pointer, named)
    for candidate in candidates:
        problem = verify(candidate.path)
        if problem is None:
            return candidate
        logger.warning("checkpoint %s is passed over: %s", candidate.path, problem)
    if candidates:
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoints in {work_dir} is whole: restore one, or start afresh in "
            "another --work-dir"
        )
    return None


def load_checkpoint(path: Path, *, check: bool = True) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: The file.
        check: Compare it with its manifest first; a file without one is read with a warning.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind, or holds more than plain data.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}{_nearest(path)}")
    if not path.with_name(path.name + _MANIFEST).exists():
        logger.warning("%s has no manifest beside it: it is read unverified", path)
    elif check and (problem := verify(path)):
        raise CheckpointError(f"checkpoint {path} is damaged: {problem}; use an earlier one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or "state_dict" not in state or "meta" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of xrlhf: it has no 'state_dict' and 'meta'")
    if state["meta"].get("format", 0) > FORMAT:
        raise CheckpointError(f"{path} was written by a newer xrlhf: update this one")
    return state


def load_strictly(model: torch.nn.Module, state_dict: Mapping[str, torch.Tensor], names: set[str], origin: str) -> None:
    """Load exactly the tensors called ``names``, none missing, none left over, none of another shape.

    Raises:
        CheckpointError: The checkpoint is of another architecture.
    """
    own = model.state_dict()
    problems = [f"lacks {name}" for name in sorted(names - set(state_dict))]
    problems += [f"has {name}, which the model lacks" for name in sorted(set(state_dict) - names)]
    problems += [
        f"has {name} of shape {tuple(state_dict[name].shape)} in place of {tuple(own[name].shape)}"
        for name in sorted(names & set(state_dict))
        if own[name].shape != state_dict[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{origin} is of another model than the recipe: it {'; '.join(problems[:3])}{more}. "
            "Use the recipe it was trained with"
        )
    model.load_state_dict(dict(state_dict), strict=False)


def _refuse_unsafe(value: Any, where: str = "checkpoint") -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_unsafe(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple, set)):
        for number, item in enumerate(value):
            _refuse_unsafe(item, f"{where}[{number}]")
    elif not isinstance(value, (torch.Tensor, str, bytes, int, float, bool, type(None))):
        raise TypeError(f"{where} is a {type(value).__name__}: only tensors and plain values may be saved")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nearest(path: Path) -> str:
    others = find_checkpoints(path.parent)
    return f"; {path.parent} has {', '.join(item.path.name for item in others[:5])}" if others else ""
