"""Model hubs: which of them a name means, which commit it stood for, and what went wrong there.

A name such as ``owner/name`` means a repository of the Hugging Face hub, or of ModelScope where the part that names it
says ``hub="modelscope"`` or the environment says ``XRLHF_HUB=modelscope``. A path on disk is never looked up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from xrlhf.errors import ConfigError, MissingExtraError, error_line

__all__ = [
    "HUBS",
    "HUB_VARIABLE",
    "Failure",
    "RepoType",
    "cached_commit",
    "chosen_hub",
    "failure_of",
    "fetch_from_modelscope",
    "is_commit",
    "is_hub_name",
    "way_round",
]

HUBS = ("huggingface", "modelscope")
HUB_VARIABLE = "XRLHF_HUB"

RepoType = Literal["model", "dataset"]
Failure = Literal["gated", "no revision", "missing", "unreachable"]

_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def chosen_hub(hub: str | None = None) -> str:
    """The hub that names mean: what the recipe says, else the environment, else Hugging Face.

    Raises:
        ConfigError: No such hub.
    """
    found = hub or os.environ.get(HUB_VARIABLE) or HUBS[0]
    if found not in HUBS:
        where = "hub" if hub else HUB_VARIABLE
        raise ConfigError(f"{where}={found!r}: choose one of {', '.join(HUBS)}")
    return found


def is_hub_name(path: str) -> bool:
    """Whether ``path`` reads like ``owner/name`` and nothing of that name is on disk."""
    return _HUB_NAME.fullmatch(path) is not None and not Path(path).expanduser().exists()


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which never comes to mean anything else."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def cached_commit(name: str, revision: str | None, repo_type: RepoType) -> str | None:
    """The commit that a repository of the Hugging Face hub was last read at, as the local cache notes it.

    Args:
        name: ``owner/name``.
        revision: The branch or tag that was asked for; None for the main branch.
        repo_type: What it holds.

    Returns:
        40 hexadecimal digits; None where the cache does not know.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / "--".join([f"{repo_type}s", *name.split("/")])
    try:
        commit = (folder / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if is_commit(commit) else None


def fetch_from_modelscope(
    name: str,
    *,
    revision: str | None,
    repo_type: RepoType,
    only: Sequence[str] | None = None,
    leave_out: Sequence[str] | None = None,
) -> Path:
    """A folder with the files of a ModelScope repository, downloaded on first use.

    Data sets are fetched as files, too, rather than through ``MsDataset``, which insists on older versions of
    ``datasets``.

    Args:
        name: ``owner/name`` on ModelScope.
        revision: Branch, tag or commit; its main branch if None.
        repo_type: What it holds.
        only: Patterns of the files to fetch; all if None.
        leave_out: Patterns of files not to fetch.

    Raises:
        MissingExtraError: The package ``modelscope`` is not installed.
    """
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise MissingExtraError(
            f"{name!r} is looked up on ModelScope, which needs the package modelscope ({error_line(error)}): "
            "pip install 'xrlhf[modelscope]'"
        ) from error
    return Path(
        snapshot_download(
            repo_id=name,
            repo_type=repo_type,
            revision=revision,
            allow_patterns=None if only is None else list(only),
            ignore_patterns=None if leave_out is None else list(leave_out),
        )
    )


def failure_of(error: BaseException | None) -> Failure | None:
    """What kept a repository from being read, where a hub's client is at the bottom of an error; else None.

    The clients have changed their HTTP libraries, and not all of their errors derive from ConnectionError.
    """
    while error is not None:
        name = type(error).__name__
        if name in ("GatedRepoError", "PermissionDeniedError", "AuthenticationError") or (
            name == "DatasetNotFoundError" and "gated" in str(error).lower()
        ):
            return "gated"
        if name in ("RevisionNotFoundError", "NoValidRevisionError"):
            return "no revision"
        if name in ("RepositoryNotFoundError", "DatasetNotFoundError", "NotExistError"):
            return "missing"
        if isinstance(error, ConnectionError) or any(
            word in name for word in ("Offline", "Connect", "Timeout", "LocalEntryNotFound")
        ):
            return "unreachable"
        error = error.__cause__ or error.__context__
    return None


def way_round(name: str, repo_type: RepoType, hub: str) -> str:
    """How to do without the connection that failed."""
    if hub == "modelscope":
        command = f"modelscope download --{repo_type} {name} --local_dir DIR"
    else:
        command = f"hf download {name} {'--repo-type dataset ' if repo_type == 'dataset' else ''}--local-dir DIR"
    place = "the path of a data file in DIR" if repo_type == "dataset" else "DIR"
    return f"fetch it on a machine that can ({command}) and give {place} instead of the name"
