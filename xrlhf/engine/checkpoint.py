"""Checkpoints as transactions: whole or absent, verified on load, and plain enough for ``weights_only=True``.

A checkpoint is one file, ``iter_N.pth``, or a folder ``iter_N`` to which every process has written what it holds. Both
are written under another name, flushed to the disk and renamed. A manifest, ``iter_N.pth.json`` beside the file or
``manifest.json`` in the folder, holds size and SHA-256 of every file. A checkpoint counts only if all of them agree.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from xrlhf.engine.durable import FileRecord, file_problem, refuse_unsafe, sync_folder, write_json, write_state
from xrlhf.engine.shares import Share, SharedTensors, join_shares, shape_of
from xrlhf.errors import CheckpointError, error_line

__all__ = [
    "CheckpointFile",
    "abandon_shards",
    "check_tensors",
    "checkpoint_name",
    "commit_shards",
    "find_checkpoints",
    "is_sharded",
    "load_checkpoint",
    "load_strictly",
    "newest_valid",
    "prepare_shards",
    "refuse_damaged",
    "remove_checkpoint",
    "remove_leftovers",
    "save_checkpoint",
    "save_shard",
    "step_of",
    "verify",
]

logger = logging.getLogger("xrlhf")

FORMAT = 1
LAST = "last_checkpoint"

_NAME = re.compile(r"iter_(\d+)(?:\.pth)?")
_MANIFEST = ".json"
_SHARDS_MANIFEST = "manifest.json"
_COMMON = "common.pth"
_ASIDE = ".tmp"
_GOING = ".old.tmp"
# The last part is what :func:`xrlhf.files.replacing` writes a run's other files to.
_LEFTOVER = re.compile(
    rf"(iter_\d+(\.old|\.pth(\.json)?)?|{LAST})\.tmp|\.(data_report\.json|curves\.png|.+\.py)\.\d+\.tmp"
)
_READERS = 8
"""Files that are read at a time to verify a folder of them; hashing takes about as long as reading."""


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint of a run's directory, a file or a folder, and the optimizer step it was taken after."""

    path: Path
    step: int


def checkpoint_name(step: int, *, sharded: bool = False) -> str:
    """What the checkpoint after ``step`` optimizer steps is called."""
    return f"iter_{step}" if sharded else f"iter_{step}.pth"


def step_of(path: Path) -> int | None:
    """The optimizer step that a checkpoint's name tells; None for another name."""
    match = _NAME.fullmatch(path.name)
    return None if match is None else int(match.group(1))


def is_sharded(path: Path) -> bool:
    """Whether a path is a checkpoint to which every process has written a part, whole or not."""
    return path.is_dir() and (_NAME.fullmatch(path.name) is not None or (path / _SHARDS_MANIFEST).is_file())


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state`` to ``path``: either the whole of it, verified by its manifest, or nothing.

    Args:
        state: Tensors and plain values; anything that ``torch.load(weights_only=True)`` would refuse is refused here.
        path: ``.../iter_N.pth``.

    Raises:
        CheckpointError: The disk is full or cannot be written; earlier checkpoints are untouched.
        TypeError: ``state`` holds something else than tensors and plain values.
    """
    refuse_unsafe(state)
    aside = path.with_name(path.name + _ASIDE)
    manifest_aside = path.with_name(path.name + _MANIFEST + _ASIDE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = write_state(state, aside)
        write_json({"format": FORMAT, "size": record.size, "sha256": record.sha256}, manifest_aside)
        # Replacing an old checkpoint of the same step: its file must go before its manifest changes.
        _discard_folder(path.with_suffix(""))
        path.unlink(missing_ok=True)
        os.replace(manifest_aside, path.with_name(path.name + _MANIFEST))
        os.replace(aside, path)
        sync_folder(path.parent)
    except BaseException as error:
        for leftover in (aside, manifest_aside):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        raise _cannot_write(path, error) from error
    _point_at(path)


def prepare_shards(path: Path) -> None:
    """Make the folder, under another name, that processes write their parts of ``path`` to, and empty it.

    Args:
        path: ``.../iter_N``.

    Raises:
        CheckpointError: It cannot be made.
    """
    aside = path.with_name(path.name + _ASIDE)
    try:
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir(parents=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def save_shard(
    shard: Mapping[str, Any], path: Path, *, rank: int, world_size: int, common: Mapping[str, Any] | None = None
) -> list[FileRecord]:
    """Write what one process holds of a checkpoint; it counts once all have, and :func:`commit_shards` was called.

    Args:
        shard: By ``"state_dict"`` and ``"optimizer"``, the process's shares as :meth:`Share.copied` gives them.
        path: ``.../iter_N``; :func:`prepare_shards` has made its folder.
        rank: The process.
        world_size: How many there are.
        common: What is not shared, from the first process.

    Returns:
        What the manifest has to say of the files.

    Raises:
        CheckpointError: The disk is full or cannot be written.
        TypeError: As in :func:`save_checkpoint`.
    """
    contents = {f"shard_{rank:05d}_of_{world_size:05d}.pth": shard, **({_COMMON: common} if common else {})}
    aside = path.with_name(path.name + _ASIDE)
    try:
        # Where machines share no files, this one has no folder yet; whoever commits will say so.
        aside.mkdir(parents=True, exist_ok=True)
        records = []
        for name, content in contents.items():
            refuse_unsafe(content, name)
            records.append(write_state(content, aside / name))
        return records
    except (OSError, RuntimeError) as error:
        raise _cannot_write(path, error) from error


def commit_shards(path: Path, records: Sequence[FileRecord]) -> None:
    """Make a checkpoint of what all processes have written: one of them calls this when all have.

    Args:
        path: ``.../iter_N``.
        records: What :func:`save_shard` gave to all processes.

    Raises:
        CheckpointError: It cannot be written, or files of other processes are not to be seen from here.
    """
    aside = path.with_name(path.name + _ASIDE)
    try:
        unseen = [record.name for record in records if not _has_size(aside / record.name, record.size)]
        if unseen:
            raise CheckpointError(
                f"checkpoint {path} is not whole: {unseen[0]}{f' and {len(unseen) - 1} more' if unseen[1:] else ''}, "
                "written by another process, cannot be seen by the first one. Put work_dir on a file system that all "
                "machines share, or leave sharded out"
            )
        files = {record.name: {"size": record.size, "sha256": record.sha256} for record in records}
        write_json({"format": FORMAT, "files": files}, aside / _SHARDS_MANIFEST)
        sync_folder(aside)
        # An old checkpoint of the same step, of either kind.
        _remove(path)
        _remove(path.with_name(path.name + ".pth"))
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    _point_at(path)


def abandon_shards(path: Path) -> None:
    """Delete what processes have written of a checkpoint that cannot become whole."""
    shutil.rmtree(path.with_name(path.name + _ASIDE), ignore_errors=True)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _cannot_write(path: Path, cause: BaseException) -> CheckpointError:
    free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.is_dir() else 0.0
    return CheckpointError(
        f"checkpoint {path} could not be written ({error_line(cause)}); {free:,.0f} MiB are free there; "
        "earlier checkpoints are untouched"
    )


def _point_at(path: Path) -> None:
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
    """Delete a checkpoint of either kind, with its manifest; a failure is a warning, never the end of a run."""
    try:
        _remove(path)
    except OSError as error:
        logger.warning("old checkpoint %s could not be deleted: %s", path, error)


def _remove(path: Path) -> None:
    if path.is_dir():
        _discard_folder(path)
        return
    path.unlink(missing_ok=True)
    path.with_name(path.name + _MANIFEST).unlink(missing_ok=True)


def _discard_folder(path: Path) -> None:
    if not path.is_dir():
        return
    # A folder goes file by file: under its own name it would be a damaged checkpoint for a while.
    going = path.with_name(path.name + _GOING)
    if going.exists():
        shutil.rmtree(going)
    os.replace(path, going)
    shutil.rmtree(going)


def remove_leftovers(work_dir: Path) -> None:
    """Delete what saves that were cut off by a kill have left in a run's directory."""
    for path in work_dir.iterdir() if work_dir.is_dir() else []:
        is_orphan = path.suffix == _MANIFEST and _NAME.fullmatch(path.stem) and not path.with_suffix("").exists()
        if is_orphan or _LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def find_checkpoints(work_dir: Path) -> list[CheckpointFile]:
    """All checkpoints of a run by name, newest first; whether they are whole is not looked at."""
    found = [
        CheckpointFile(path, int(match.group(1)))
        for path in (work_dir.iterdir() if work_dir.is_dir() else [])
        if (match := _NAME.fullmatch(path.name))
    ]
    return sorted(found, key=lambda item: (-item.step, item.path.name))


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if it is whole."""
    return _verify_shards(path) if path.is_dir() else _verify_file(path)


def _verify_file(path: Path) -> str | None:
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
    return file_problem(path, size, expected)


def _verify_shards(path: Path) -> str | None:
    try:
        records = _records(path)
    except FileNotFoundError:
        return f"{_SHARDS_MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return f"{_SHARDS_MANIFEST} is damaged"
    # What is quickly seen first: a file that is missing or cut short need not be waited for.
    for record in records:
        file = path / record.name
        if not file.is_file() or file.stat().st_size != record.size:
            return f"{record.name}: {file_problem(file, record.size, record.sha256)}"
    with ThreadPoolExecutor(_READERS) as pool:
        problems = pool.map(lambda record: file_problem(path / record.name, record.size, record.sha256), records)
        for record, problem in zip(records, problems, strict=True):
            if problem is not None:
                return f"{record.name}: {problem}"
    return None


def _records(path: Path) -> list[FileRecord]:
    """What the manifest in a folder says of its files."""
    manifest = json.loads((path / _SHARDS_MANIFEST).read_text(encoding="utf-8"))
    records = [
        FileRecord(str(name), int(about["size"]), str(about["sha256"])) for name, about in manifest["files"].items()
    ]
    if not records or any(Path(record.name).name != record.name for record in records):
        raise ValueError("a manifest names files of its own folder, at least one")
    return records


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


def refuse_damaged(path: Path) -> None:
    """Compare a checkpoint with its manifest; a file without one passes with a warning.

    Raises:
        CheckpointError: It is missing, damaged, or no checkpoint.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}{_nearest(path)}")
    if path.is_dir() and not is_sharded(path):
        raise CheckpointError(f"{path} is a folder, not a checkpoint{_nearest(path / LAST)}")
    if path.is_file() and not path.with_name(path.name + _MANIFEST).exists():
        logger.warning("%s has no manifest beside it: it is read unverified", path)
    elif problem := verify(path):
        raise CheckpointError(f"checkpoint {path} is damaged: {problem}; use an earlier one")


def load_checkpoint(path: Path, *, check: bool = True) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; its tensors stay on the disk until they are used.

    Args:
        path: The file, or the folder of a sharded one, whose tensors are put together when they are asked for.
        check: Compare it with its manifest first; a file without one is read with a warning.

    Returns:
        ``state_dict`` and ``meta``, and ``optimizer`` and ``param_schedulers`` where it has them. Tensors are copies
        of the file in memory as far as they are looked at: what is to outlive the file has to be copied.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, of another kind, or holds more than plain data.
    """
    if check or not path.exists():
        refuse_damaged(path)
    state = _read_shards(path) if path.is_dir() else _read(path)
    parts = (state.get("state_dict"), state.get("meta")) if isinstance(state, dict) else (None, None)
    if not all(isinstance(part, Mapping) for part in parts):
        raise CheckpointError(f"{path} is not a checkpoint of xrlhf: it has no 'state_dict' and 'meta'")
    if not isinstance(version := state["meta"].get("format", 0), int) or version > FORMAT:
        raise CheckpointError(f"{path} was written by a newer xrlhf: update this one")
    return state


def _read(path: Path) -> Any:
    try:
        # Mapped: processes of one machine share what they read, and nobody reads what another has to load.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {_why_unreadable(path, error)}") from error


def _read_shards(path: Path) -> dict[str, Any]:
    """What :func:`save_checkpoint` would have been given, its tensors in shares."""
    try:
        names = [record.name for record in _records(path)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {_SHARDS_MANIFEST}: {error_line(error)}") from error
    common = _read(path / _COMMON)
    shards = [_read(path / name) for name in names if name != _COMMON]
    try:
        weights = _joined([shard["state_dict"] for shard in shards])
        state = {**common, "state_dict": SharedTensors(weights)}
        if "optimizer" in common:
            plain = common["optimizer"]["state"]
            state["optimizer"] = {
                **common["optimizer"],
                "state": {
                    index: SharedTensors(_joined([shard["optimizer"][index] for shard in shards]), plain.get(index))
                    for index in shards[0]["optimizer"]
                },
            }
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}; use an earlier one") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of xrlhf: its shards have another form") from error
    return state


def _joined(shards: Sequence[Mapping[str, Any]]) -> dict[str, Share]:
    return {name: join_shares(name, [Share.from_plain(shard[name]) for shard in shards]) for name in shards[0]}


def load_strictly(model: torch.nn.Module, state_dict: Mapping[str, torch.Tensor], names: set[str], origin: str) -> None:
    """Load exactly the tensors called ``names``, none missing, none left over, none of another shape.

    They are taken from ``state_dict`` one after the other, which may read or put them together only then.

    Raises:
        CheckpointError: The checkpoint is of another architecture.
    """
    check_tensors(model.state_dict(), state_dict, names, origin)
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for name in names & own.keys():
            own[name].copy_(state_dict[name])
    if rest := names - own.keys():
        # What a module makes up for its state, and reads back by a method of its own.
        model.load_state_dict({name: state_dict[name] for name in rest}, strict=False)


def check_tensors(
    own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], names: set[str], origin: str
) -> None:
    """Refuse tensors that are not exactly those called ``names``, in the shapes of the model's ``own``.

    Raises:
        CheckpointError: The checkpoint is of another architecture.
    """
    problems = [f"lacks {name}" for name in sorted(names - set(found))]
    problems += [f"has {name}, which the model lacks" for name in sorted(set(found) - names)]
    shapes = {name: shape_of(found, name) for name in names & set(found)}
    problems += [
        f"has {name} of shape {tuple(shape or ())} in place of {tuple(own[name].shape)}"
        for name, shape in sorted(shapes.items())
        if own[name].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{origin} is of another model than the recipe: it {'; '.join(problems[:3])}{more}. "
            "Use the recipe it was trained with"
        )


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


def _nearest(path: Path) -> str:
    others = find_checkpoints(path.parent)
    return f"; {path.parent} has {', '.join(item.path.name for item in others[:5])}" if others else ""
