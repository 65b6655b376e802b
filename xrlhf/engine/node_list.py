"""Slurm's short form of a list of hosts, written out: ``gpu[01-03,7]`` is gpu01, gpu02, gpu03, gpu7."""

from __future__ import annotations

import re
from itertools import product

from xrlhf.errors import LaunchError

__all__ = ["expand_node_list"]

_HOST = re.compile(r"(?:[^\[\],\s]|\[[^\[\]]*\])+")
_PIECE = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_MOST_HOSTS = 65536


def expand_node_list(text: str) -> list[str]:
    """The hosts of a list as slurm writes it, in its order; leading zeros stay.

    For where ``scontrol show hostnames`` is absent, as in many containers.

    Args:
        text: Names separated by commas; numbers and ranges of them in brackets, several brackets to a name allowed.

    Raises:
        LaunchError: It is no such list.
    """
    hosts: list[str] = []
    position = 0
    while position < len(text):
        found = _HOST.match(text, position)
        if found is None:
            raise _unreadable(text, text[position:])
        hosts += _expand_host(text, found.group())
        position = found.end()
        if text[position : position + 1] == ",":
            position += 1
            if position == len(text):
                raise _unreadable(text, ",")
        elif position < len(text):
            raise _unreadable(text, text[position:])
    if not hosts:
        raise LaunchError("the list of nodes is empty")
    return hosts


def _expand_host(text: str, host: str) -> list[str]:
    choices: list[list[str]] = []
    for ranges, plain in _PIECE.findall(host):
        choices.append([plain] if plain else [number for part in ranges.split(",") for number in _numbers(text, part)])
    return ["".join(pieces) for pieces in product(*choices)]


def _numbers(text: str, part: str) -> list[str]:
    found = _RANGE.fullmatch(part)
    if found is None:
        raise _unreadable(text, f"[{part}]")
    first, last = found.group(1), found.group(2) or found.group(1)
    if not 0 <= int(last) - int(first) < _MOST_HOSTS:
        raise _unreadable(text, f"[{part}]")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def _unreadable(text: str, where: str) -> LaunchError:
    return LaunchError(
        f"the list of nodes {text!r} cannot be read at {where!r}: expected names like gpu[01-03,7],login1"
    )
