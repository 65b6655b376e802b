"""Where a recipe says that a model or tokenizer is: a directory on disk or a name on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from xrlhf.errors import ModelError

__all__ = ["pretrained_location"]

_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def pretrained_location(path: str, what: str) -> str:
    """``path`` as ``from_pretrained`` takes it, with ``~`` expanded.

    Args:
        path: A Hugging Face directory or a hub name.
        what: What is looked for there, for messages.

    Raises:
        ModelError: ``path`` is a file, or reads as a path on disk and is not there.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return str(place)
    if place.is_file():
        more = ": convert it with 'xrlhf convert pth_to_hf' first" if place.suffix == ".pth" else ""
        raise ModelError(f"{path} is a file; a {what} is loaded from a Hugging Face directory or a hub name{more}")
    if not _HUB_NAME.fullmatch(path):
        raise ModelError(f"no {what} at {path!r}: there is no such directory")
    return path
