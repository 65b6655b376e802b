"""Checkpoints as transactions: whole or absent, verified on load, and plain enough for ``weights_only=True``.

``iter_N.pth`` is written under another name, flushed to the disk and renamed; ``iter_N.pth.json`` beside it holds its
size and SHA-256 and is in place before the rename. A checkpoint counts only if both agree.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from xrlhf.errors import CheckpointError, error_line

__all__ = [
    "CheckpointFile",
    "check_tensors",
    "find_checkpoints",
    "load_checkpoint",
    "load_strictly",
    "newest_valid",
    "remove_checkpoint",
    "remove_leftovers",
    "save_checkpoint",
    "verify",
]

logger = logging.getLogger("xrlhf")

FORMAT = 1
LAST = "last_checkpoint"

_NAME = re.compile(r"iter_(\d+)\.pth")
_MANIFEST = ".json"
_ASIDE = ".tmp"
# The second half is what :func:`xrlhf.files.replacing` writes a run's other files to.
_LEFTOVER = re.compile(rf"(iter_\d+\.pth(\.json)?|{LAST})\.tmp|\.(data_report\.json|curves\.png|.+\.py)\.\d+\.tmp")

# Exact types: a subclass (a numpy float is one of float) is pickled as an object, which a safe load refuses.
_PLAIN = (str, bytes, int, float, bool, type(None), torch.Tensor, torch.nn.Parameter)
_MAPPINGS = (dict, OrderedDict)
_SEQUENCES = (list, tuple, set, torch.Size)


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint file of a run's directory and the optimizer step it was taken after."""

    path: Path
    step: int


class _HashingFile:
    """A file that hashes what is written to it, so a checkpoint need not be read back.

    ``failure`` keeps the first error of the file system: torch's writer reports another one in its place.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self._digest.update(data)
        self.size += memoryview(data).nbytes
        return written

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> str:
        """Bring everything to the disk; the SHA-256 of it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        # Closing tries once more to write what the disk had no room for.
        with contextlib.suppress(OSError):
            self._file.close()


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state`` to ``path``: either the whole of it, verified by its manifest, or nothing.

    Args:
        state: Tensors and plain values; anything that ``torch.load(weights_only=True)`` would refuse is refused here.
        path: ``.../iter_N.pth``.

    Raises:
        CheckpointError: The disk is full or cannot be written; earlier checkpoints are untouched.
        TypeError: ``state`` holds something else than tensors and plain values.
    """
    _refuse_unsafe(state)
    aside = path.with_name(path.name + _ASIDE)
    manifest_aside = path.with_name(path.name + _MANIFEST + _ASIDE)
    file: _HashingFile | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _HashingFile(aside)
        torch.save(dict(state), file)  # type: ignore[arg-type]
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
    except BaseException as error:
        if file is not None:
            file.abandon()
        for leftover in (aside, manifest_aside):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        cause = (file.failure if file is not None else None) or error
        free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.is_dir() else 0.0
        raise CheckpointError(
            f"checkpoint {path} could not be written ({error_line(cause)}); {free:,.0f} MiB are free there; "
            "earlier checkpoints are untouched"
        ) from error
    try:
        write_pointer(path)
    except OSError as error:
        # Only a hint: the checkpoint itself is whole and will be found without it.
        logger.warning("%s could not be written: %s", path.with_name(LAST), error)


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


def remove_leftovers(work_dir: Path) -> None:
    """Delete what saves that were cut off by a kill have left in a run's directory."""
    for path in work_dir.iterdir() if work_dir.is_dir() else []:
        is_orphan = path.suffix == _MANIFEST and _NAME.fullmatch(path.stem) and not path.with_suffix("").exists()
        if is_orphan or _LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


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
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return f"{manifest_path.name} is damaged"
    try:
        if path.stat().st_size != size:
            return f"it has {path.stat().st_size} bytes in place of {size}"
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None if digest.hexdigest() == expected else "its content does not match its checksum"


def newest_valid(work_dir: Path) -> CheckpointFile | None:
    """The newest whole checkpoint of a run; damaged ones are passed over with a warning each.

    Raises:
        CheckpointError: There are checkpoints, but none is whole.
    """
    candidates = find_checkpoints(work_dir)
    pointer = work_dir / LAST
    if pointer.is_file():
        named = pointer.read_text(encoding="utf-8", errors="replace").strip()
        if named not in [candidate.path.name for candidate in candidates]:
            logger.warning("%s names %r, which is not there: the newest whole checkpoint is used", pointer, named)
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
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint{_nearest(path / LAST)}")
    if not path.with_name(path.name + _MANIFEST).exists():
        logger.warning("%s has no manifest beside it: it is read unverified", path)
    elif check and (problem := verify(path)):
        raise CheckpointError(f"checkpoint {path} is damaged: {problem}; use an earlier one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {_why_unreadable(path, error)}") from error
    parts = (state.get("state_dict"), state.get("meta")) if isinstance(state, dict) else (None, None)
    if not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(f"{path} is not a checkpoint of xrlhf: it has no 'state_dict' and 'meta'")
    if not isinstance(version := state["meta"].get("format", 0), int) or version > FORMAT:
        raise CheckpointError(f"{path} was written by a newer xrlhf: update this one")
    return state


def load_strictly(model: torch.nn.Module, state_dict: Mapping[str, torch.Tensor], names: set[str], origin: str) -> None:
    """Load exactly the tensors called ``names``, none missing, none left over, none of another shape.

    Raises:
        CheckpointError: The checkpoint is of another architecture.
    """
    check_tensors(model.state_dict(), state_dict, names, origin)
    model.load_state_dict(dict(state_dict), strict=False)


def check_tensors(
    own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], names: set[str], origin: str
) -> None:
    """Refuse tensors that are not exactly those called ``names``, in the shapes of the model's ``own``.

    Raises:
        CheckpointError: The checkpoint is of another architecture.
    """
    problems = [f"lacks {name}" for name in sorted(names - set(found))]
    problems += [f"has {name}, which the model lacks" for name in sorted(set(found) - names)]
    problems += [
        f"has {name} of shape {tuple(found[name].shape)} in place of {tuple(own[name].shape)}"
        for name in sorted(names & set(found))
        if own[name].shape != found[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{origin} is of another model than the recipe: it {'; '.join(problems[:3])}{more}. "
            "Use the recipe it was trained with"
        )


def _refuse_unsafe(value: Any, where: str = "checkpoint") -> None:
    if type(value) in _MAPPINGS:
        for key, item in value.items():
            if type(key) not in _PLAIN:
                raise TypeError(f"{where} has a key of type {type(key).__name__}: only plain values may be keys")
            _refuse_unsafe(item, f"{where}[{key!r}]")
    elif type(value) in _SEQUENCES:
        for number, item in enumerate(value):
            _refuse_unsafe(item, f"{where}[{number}]")
    elif type(value) not in _PLAIN:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"{where} is a {kind}: only tensors and plain values may be saved")


def _why_unreadable(path: Path, error: Exception) -> str:
    if not zipfile.is_zipfile(path):
        return "it is no file of torch, or only a part of one"
    try:
        unsafe = get_unsafe_globals_in_checkpoint(path)
    except Exception:
        # It cannot even be scanned: torch's own error says more.
        unsafe = []
    if unsafe:
        return f"it holds {', '.join(unsafe[:3])}, and only tensors and plain values are read, for safety"
    return error_line(error)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nearest(path: Path) -> str:
    others = find_checkpoints(path.parent)
    return f"; {path.parent} has {', '.join(item.path.name for item in others[:5])}" if others else ""
