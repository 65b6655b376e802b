"""Where a recipe says that a model or tokenizer is: a directory on disk or a name on a hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from xrlhf.errors import ModelError, UserError, error_line
from xrlhf.hub import chosen_hub, failure_of, fetch_from_modelscope, way_round

__all__ = ["loading_error", "pretrained_location"]

_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_LOGIN = {"huggingface": "hf auth login", "modelscope": "modelscope login"}


def pretrained_location(
    path: str,
    what: str,
    *,
    revision: str | None = None,
    hub: str | None = None,
    only: Sequence[str] | None = None,
    leave_out: Sequence[str] | None = None,
) -> str:
    """``path`` as ``from_pretrained`` takes it, with ``~`` expanded; a name on ModelScope becomes the folder it is in.

    Args:
        path: A Hugging Face directory or a hub name.
        what: What is looked for there, for messages.
        revision: Branch, tag or commit on the hub.
        hub: See :func:`xrlhf.hub.chosen_hub`.
        only: Patterns of the files that are needed, where the hub's files are fetched beforehand.
        leave_out: Patterns of files that are not.

    Raises:
        ModelError: ``path`` is a file, or reads as a path on disk and is not there, or ModelScope does not give it.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return str(place)
    if place.is_file():
        more = ": convert it with 'xrlhf convert pth_to_hf' first" if place.suffix == ".pth" else ""
        raise ModelError(f"{path} is a file; a {what} is loaded from a Hugging Face directory or a hub name{more}")
    if not _NAME.fullmatch(path):
        raise ModelError(f"no {what} at {path!r}: there is no such directory")
    if chosen_hub(hub) == "huggingface":
        return path
    try:
        return str(fetch_from_modelscope(path, revision=revision, repo_type="model", only=only, leave_out=leave_out))
    except UserError:
        raise
    except Exception as error:
        raise loading_error(error, what, path, revision=revision, hub=hub) from error


def loading_error(
    error: Exception, what: str, path: str, *, revision: str | None = None, hub: str | None = None
) -> ModelError:
    """What a loader's error means to the one who wrote the recipe, on one line.

    Args:
        error: What the loader raised.
        what: What was to be loaded.
        path: What the recipe says of its place.
        revision: The revision that was asked for.
        hub: The hub that was asked for.
    """
    hub = chosen_hub(hub)
    failed = f"no {what} could be loaded from {path!r}"
    if "trust_remote_code=True" in str(error):
        return ModelError(
            f"{failed}: it needs code of its own, which runs only where the recipe says so; read that code, then set "
            f"trust_remote_code=True beside the path of the {what}"
        )
    failure = None if Path(path).expanduser().is_dir() else failure_of(error)
    if failure == "unreachable":
        return ModelError(
            f"{failed}: the hub ({hub}) cannot be reached and the cache does not hold it; check the connection, or "
            f"{way_round(path, 'model', hub)}"
        )
    if failure == "missing":
        return ModelError(
            f"{failed}: the hub ({hub}) shows no repository of that name; check it, or log in if it is private "
            f"({_LOGIN[hub]})"
        )
    if failure == "gated":
        return ModelError(f"{failed}: access must be asked for on its page, then log in ({_LOGIN[hub]})")
    if failure == "no revision":
        return ModelError(f"{failed}: it has no revision {revision!r}; name a branch, a tag or a commit of it")
    return ModelError(f"{failed}: {error_line(error)}")
