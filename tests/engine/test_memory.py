"""Running out of memory is said in terms of what was being computed."""

from __future__ import annotations

import pytest
import torch

from xrlhf.engine.memory import is_out_of_memory, naming_what_needs_memory
from xrlhf.errors import TrainingError


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("XPU out of memory, please use `empty_cache`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_allocators_say(error: BaseException, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory


def test_a_real_allocator() -> None:
    """A pebibyte is more than an address space of 47 bits can give with anything else in it."""
    with (
        pytest.raises(TrainingError, match=r"^the step: smaller ones! \(.*allocate 1125899906842624 bytes.*\)$"),
        naming_what_needs_memory(lambda: "the step: smaller ones!"),
    ):
        torch.empty(2**50, dtype=torch.uint8)


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(ValueError, match=r"^other$"), naming_what_needs_memory(lambda: pytest.fail("not asked for")):
        raise ValueError("other")
