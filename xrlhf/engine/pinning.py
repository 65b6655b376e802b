"""Which commits a run read from a hub, so that the recipe it leaves behind reads the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from xrlhf.config.resolve import find_component
from xrlhf.config.signature import read_signature
from xrlhf.data.sources import HubSource
from xrlhf.errors import ConfigError
from xrlhf.hub import RepoType, cached_commit, chosen_hub, is_commit, is_hub_name

__all__ = ["pin_revisions"]


def pin_revisions(recipe: Config) -> tuple[dict[str, Any], list[str]]:
    """The values of a recipe with the commits that its hub names stood for, once its parts are built.

    Args:
        recipe: The recipe; it stays as it is.

    Returns:
        The values, with ``revision`` filled in wherever a part that takes one has a hub name as its ``path`` and the
        commit is known; and a line for every name that the recipe itself does not pin.
    """
    lines: dict[str, None] = {}
    pinned = {key: _pinned(value, lines) for key, value in recipe.to_dict().items()}
    return pinned, list(lines)


def _pinned(value: Any, lines: dict[str, None]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_pinned(item, lines) for item in value)
    if not isinstance(value, Mapping):
        return value
    copy = {key: _pinned(item, lines) for key, item in value.items()}
    if {"source", "map_fn"} <= set(copy):
        copy["source"] = _pinned_source(copy.get("source"), lines)
    return _with_commit(copy, _repo_type(copy), lines)


def _pinned_source(source: Any, lines: dict[str, None]) -> Any:
    """What stands behind ``source=``: a name, a dict without type, or what names its class."""
    if isinstance(source, str) and is_hub_name(source):
        found = _with_commit({"path": source}, "dataset", lines)
        return found if "revision" in found else source
    if isinstance(source, Mapping) and "type" not in source:
        return _with_commit(source, "dataset", lines)
    return source


def _with_commit(part: Mapping[str, Any], repo_type: RepoType | None, lines: dict[str, None]) -> dict[str, Any]:
    """The part with the commit that its ``path`` stood for, where it reads a hub and names none."""
    path, revision = part.get("path"), part.get("revision")
    if repo_type is None or not isinstance(path, str) or not is_hub_name(path) or is_commit(revision):
        return dict(part)
    hub = chosen_hub(part.get("hub"))
    commit = cached_commit(path, revision, repo_type) if hub == "huggingface" else None
    called = f"{'data set' if repo_type == 'dataset' else repo_type} {path!r} has no commit in the recipe"
    if commit is None:
        lines[f"{called}, and {hub} does not say which one was read: set revision= to pin it"] = None
        return dict(part)
    lines[f"{called}; this run reads {commit}: revision={commit!r} pins it"] = None
    return {**part, "revision": commit}


def _repo_type(part: Mapping[str, Any]) -> RepoType | None:
    """What the part reads from a hub; None where it reads nothing from one."""
    if "type" not in part:
        return None
    try:
        component = find_component(part["type"]) if isinstance(part["type"], str) else part["type"]
    except ConfigError:
        return None
    if component is HubSource:
        return "dataset"
    signature = read_signature(component)
    return "model" if signature is not None and {"path", "revision", "hub"} <= signature.parameters.keys() else None
