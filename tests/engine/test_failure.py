"""What the processes that are left say about the one that failed."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from xrlhf.engine import failure
from xrlhf.engine.failure import (
    announce_failure,
    explain_lost_ranks,
    introduce,
    is_first_to_speak,
    is_lost_contact,
)
from xrlhf.engine.launch import Ranks
from xrlhf.errors import TrainingError

LOST = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:4")
FIRST, SECOND, THIRD = (Ranks(rank, 3, rank, "pytorch") for rank in range(3))


@pytest.fixture
def group() -> Iterator[None]:
    """One process that stands for three: all write to the same store."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (LOST, True),
        (dist.DistBackendError("NCCL error in: remote process exited"), True),
        (dist.DistStoreError("wait timeout"), True),
        (RuntimeError("HCCL collective timed out"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("connection refused by the user's own server"), False),
        (TrainingError("step 3: NCCL is only named"), False),
        (ConnectionResetError("gloo/"), False),
    ],
)
def test_what_says_that_another_is_gone(error: BaseException, is_lost: bool) -> None:
    assert is_lost_contact(error) is is_lost


def test_the_one_that_failed_is_named(group: None) -> None:
    for ranks in (FIRST, SECOND, THIRD):
        introduce(ranks)
    announce_failure(TrainingError("step 3: no\nmemory"), SECOND)
    assert explain_lost_ranks(LOST, FIRST) == (
        f"rank 0 stops: rank 1 on {socket.gethostname()} failed: TrainingError: step 3: no memory"
    )
    assert [is_first_to_speak(), is_first_to_speak()] == [True, False]


def test_those_that_say_nothing_are_named(group: None) -> None:
    """The third has lost contact too, and says so; the second never came so far as to say its host."""
    explain_lost_ranks(LOST, THIRD, seconds=0.0)
    assert explain_lost_ranks(LOST, FIRST, seconds=0.3) == (
        "rank 0 stops: no word from rank 1: killed, out of host memory, hanging, or on a lost node? The log of the "
        "host says more"
    )
    explain_lost_ranks(LOST, SECOND, seconds=0.0)
    assert explain_lost_ranks(LOST, FIRST, seconds=0.3) == (
        "rank 0 stops: no process answers another any more: look at the network between the nodes"
    )


def test_only_some_of_many_are_named(group: None) -> None:
    said = explain_lost_ranks(LOST, Ranks(0, 12, 0, "slurm"), seconds=0.1)
    assert said is not None
    assert "no word from rank 1, rank 2, rank 3, rank 4, rank 5, rank 6, rank 7, rank 8 and 3 more: " in said


def test_an_error_of_its_own_is_not_explained(group: None) -> None:
    assert explain_lost_ranks(ValueError("x"), FIRST) is None
    assert explain_lost_ranks(LOST, Ranks()) is None


def test_the_store_is_gone_or_hangs(group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure, "_SECONDS_TO_ANSWER", 0.1)

    def gone() -> None:
        raise dist.DistNetworkError("failed to recv, got 0 bytes")

    hanging = dist.HashStore()
    for store in (gone, lambda: _Hanging(hanging)):
        monkeypatch.setattr(failure, "_store", store)
        said = explain_lost_ranks(LOST, THIRD, seconds=0.1)
        assert said is not None
        assert said.startswith("rank 2 stops: rank 0, through which the processes found each other, is gone or hangs: ")
        assert "Connection closed by peer" in said
        assert is_first_to_speak()
        announce_failure(ValueError("nobody hears it"), THIRD)


class _Hanging:
    def __init__(self, store: dist.Store) -> None:
        self.store = store

    def __getattr__(self, name: str) -> None:
        # Waits for a key that nobody writes, as one does for a process that is stopped.
        self.store.get("never")
