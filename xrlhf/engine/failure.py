"""When one process of several fails, every other one can say which, and why.

Each writes its host when it starts and its error when it fails into the store through which the processes met. One
that finds the others gone in the middle of an exchange looks there for the cause.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import torch.distributed as dist

from xrlhf.engine.launch import Ranks
from xrlhf.errors import error_line

__all__ = ["announce_failure", "explain_lost_ranks", "introduce", "is_first_to_speak", "is_lost_contact"]

Answer = TypeVar("Answer")

# The others notice the end of one within this time, unless they wait for a timeout, which all reach together.
_SECONDS_TO_HEAR = 5.0

_SECONDS_TO_ANSWER = 5.0

_RANKS_NAMED = 8

# What gloo and the libraries like NCCL (XCCL, HCCL) say when a process at the other end is gone or silent.
_LOST_CONTACT = re.compile(r"gloo/|[A-Za-z]CCL\b|ProcessGroup|TCPStore")


def introduce(ranks: Ranks) -> None:
    """Tell the others which host this process is on."""
    if ranks.is_distributed:
        _store().set(f"xrlhf/host/{ranks.rank}", socket.gethostname())


def announce_failure(error: BaseException, ranks: Ranks) -> None:
    """Tell the others what ended this process, if they can still be told."""
    if dist.is_initialized():
        text = f"{type(error).__name__}: {error_line(error)}"
        _answer(lambda: _store().set(f"xrlhf/failed/{ranks.rank}", text), _SECONDS_TO_ANSWER)


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error says no more than that another process is gone or does not answer."""
    if isinstance(error, dist.DistError):
        return True
    # What gloo throws is a plain RuntimeError.
    return type(error) is RuntimeError and _LOST_CONTACT.search(str(error)) is not None


def explain_lost_ranks(error: BaseException, ranks: Ranks, seconds: float = _SECONDS_TO_HEAR) -> str | None:
    """What became of the others, for a process whose exchange with them has failed.

    Args:
        error: What the exchange raised.
        ranks: This process among all.
        seconds: How long the others may take to say what became of them.

    Returns:
        One line that names the process that failed and its error, or those that are silent; None if ``error`` is this
        process's own.
    """
    if not ranks.is_distributed or not dist.is_initialized() or not is_lost_contact(error):
        return None
    others = [rank for rank in range(ranks.world_size) if rank != ranks.rank]
    found = _answer(lambda: _what_became_of(others, ranks, seconds), seconds + _SECONDS_TO_ANSWER)
    if found is None:
        found = (
            "rank 0, through which the processes found each other, is gone or hangs: its own output, or the log of its "
            f"host, says why ({error_line(error)})"
        )
    return f"rank {ranks.rank} stops: {found}"


def is_first_to_speak() -> bool:
    """Whether no other process has said yet what became of the run; each asks once."""
    number = _answer(lambda: int(_store().add("xrlhf/spoken", 1)), _SECONDS_TO_ANSWER)
    return number is None or number == 1


def _what_became_of(others: Sequence[int], ranks: Ranks, seconds: float) -> str:
    store = _store()
    store.set(f"xrlhf/lost_contact/{ranks.rank}", "")
    until = time.monotonic() + seconds
    silent = list(others)
    while silent and time.monotonic() < until:
        for rank in others:
            if store.check([f"xrlhf/failed/{rank}"]):
                failure = store.get(f"xrlhf/failed/{rank}").decode(errors="replace")
                return f"{_named(rank)} failed: {failure}"
        silent = [rank for rank in silent if not store.check([f"xrlhf/lost_contact/{rank}"])]
        time.sleep(0.1)
    if not silent:
        return "no process answers another any more: look at the network between the nodes"
    more = f" and {len(silent) - _RANKS_NAMED} more" if len(silent) > _RANKS_NAMED else ""
    names = ", ".join(_named(rank) for rank in silent[:_RANKS_NAMED])
    return (
        f"no word from {names}{more}: killed, out of host memory, hanging, or on a lost node? The log of the host says "
        "more"
    )


def _named(rank: int) -> str:
    store, key = _store(), f"xrlhf/host/{rank}"
    return f"rank {rank} on {store.get(key).decode(errors='replace')}" if store.check([key]) else f"rank {rank}"


def _answer(question: Callable[[], Answer], seconds: float) -> Answer | None:
    """What the store answers; None if the process that keeps it is gone, or gives no answer in time."""
    answers: list[Answer] = []

    def ask() -> None:
        with suppress(RuntimeError, OSError):
            answers.append(question())

    # A store whose keeper hangs is waited for without end, in code that nothing interrupts.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def _store() -> dist.Store:
    # torch has no public name for it.
    return dist.distributed_c10d._get_default_store()
