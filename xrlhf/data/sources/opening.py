"""From what a recipe says about its data to the source that reads it."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from xrlhf.data.sources.base import Source
from xrlhf.data.sources.files import FilesSource, missing_path
from xrlhf.data.sources.hub import HubSource, SavedDatasetSource, is_saved_dataset
from xrlhf.errors import ConfigError, DataError
from xrlhf.registry import SOURCES

__all__ = ["SourceSpec", "open_source"]

SourceSpec = Union[str, "os.PathLike[str]", Sequence[Union[str, "os.PathLike[str]"]], Mapping[str, Any], Source]
"""A path, folder, glob or hub name; a list of paths; a dict of options; or a source that is open already."""

_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_DATA_NAME = re.compile(r"\.(jsonl?|ndjson|parquet|gz|csv|tsv|txt|arrow|zst|xz|bz2|zip)$", re.IGNORECASE)
_OPTIONS = ("split", "config_name", "revision", "hub")


def open_source(
    spec: SourceSpec,
    *,
    split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    hub: str | None = None,
) -> Source:
    """The source that ``spec`` names, chosen by what is there.

    A path on disk comes first: a file or glob is read as it is, a folder as ``save_to_disk`` wrote it or as a folder
    of data files. ``owner/name`` that is no path on disk is a name on a hub.

    Args:
        spec: ``"data/train.jsonl"``, ``"data/part-*.jsonl.gz"``, ``"saved/"``, ``["a.json", "b.parquet"]``,
            ``"owner/name"``, ``dict(path="owner/name", split="train")``,
            ``dict(type=FilesSource, paths="data/*.jsonl")``, or a source.
        split: Which split, where there are several.
        config_name: Which configuration of a data set on the hub.
        revision: Which revision of a data set on the hub.
        hub: Which hub; see :func:`xrlhf.hub.chosen_hub`.

    Raises:
        DataError: A path does not exist or cannot be read.
        ConfigError: ``spec`` is nothing of the above, or an option does not fit the source.
    """
    options = {"split": split, "config_name": config_name, "revision": revision, "hub": hub}
    options = {name: value for name, value in options.items() if value is not None}
    if isinstance(spec, Mapping):
        return _from_mapping(spec, options)
    if isinstance(spec, (str, os.PathLike)):
        return _from_path(os.fspath(spec), options)
    if isinstance(spec, Sequence):
        if not all(isinstance(item, (str, os.PathLike)) for item in spec):
            raise ConfigError("a list given as source holds paths only; name several sources one by one instead")
        if missing := [item for item in spec if _names_hub(os.fspath(item))]:
            raise ConfigError(
                f"a list given as source holds files, and {os.fspath(missing[0])!r} is none; data sets on the hub are "
                "sources of their own"
            )
        return FilesSource(spec, **_only(options, "split", spec))
    if isinstance(spec, Source):
        if options:
            raise ConfigError(f"{spec.name}: is open already and takes no {', '.join(options)}")
        return spec
    raise ConfigError(f"a source is a path, a list of paths, a hub name or a dict; found {type(spec).__name__}")


def _from_path(spec: str, options: dict[str, Any]) -> Source:
    path = Path(spec).expanduser()
    if path.is_dir() and is_saved_dataset(path):
        return SavedDatasetSource(spec, **_only(options, "split", spec))
    if _names_hub(spec):
        return HubSource(spec, **options)
    if not path.exists() and "/" not in spec and not _DATA_NAME.search(spec) and not re.search(r"[*?\[]", spec):
        raise DataError(f"{missing_path(spec)} (a data set on the hub is named owner/name)")
    return FilesSource(spec, **_only(options, "split", spec))


def _names_hub(spec: str) -> bool:
    """Whether ``spec`` reads like ``owner/name`` and is not a path that was mistyped."""
    if not _HUB_NAME.fullmatch(spec) or _DATA_NAME.search(spec):
        return False
    return not Path(spec).exists() and not Path(spec).parent.exists()


def _only(options: dict[str, Any], accepted: str, spec: Any) -> dict[str, Any]:
    for name in options:
        if name != accepted:
            raise ConfigError(f"{name} is for data sets on the hub, and {spec!r} is on disk; leave it out")
    return options


def _from_mapping(spec: Mapping[str, Any], options: dict[str, Any]) -> Source:
    arguments = {**spec, **options}
    kind = arguments.pop("type", None)
    if kind is None:
        unknown = set(arguments) - {"path", *_OPTIONS}
        if "path" not in arguments or unknown:
            found = ", ".join(sorted(map(str, spec))) or "nothing"
            raise ConfigError(f"a source without type takes path and optionally {', '.join(_OPTIONS)}; found {found}")
        path = arguments.pop("path")
        return open_source(path, **arguments)
    if isinstance(kind, str):
        name = kind
        kind = SOURCES.get(name)
        if kind is None:
            raise ConfigError(f"no source is called {name!r}; known are {', '.join(sorted(SOURCES.module_dict))}")
    if not callable(kind):
        raise ConfigError(f"the type of a source is a class or its name; found {type(kind).__name__}")
    called = getattr(kind, "__name__", kind)
    try:
        inspect.signature(kind).bind(**arguments)
    except (TypeError, ValueError) as err:
        raise ConfigError(f"source {called}: {err}") from err
    source = kind(**arguments)
    if not isinstance(source, Source):
        raise ConfigError(
            f"source {called}: gives {type(source).__name__}, which is no source; give a path or hub name instead"
        )
    return source
