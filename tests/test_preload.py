"""What is said to libraries before they are imported."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from xrlhf.preload import TORCH_LOG_LEVEL, quieten_libraries, set_library_environment


@pytest.fixture
def deepspeed_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("DeepSpeed")
    before = list(logger.filters)
    logger.filters.clear()
    yield logger
    logger.filters[:] = before


def test_the_line_of_every_start_is_left_out_and_others_are_not(deepspeed_logger: logging.Logger) -> None:
    for _ in range(2):
        quieten_libraries()
    assert len(deepspeed_logger.filters) == 1
    texts = ("Setting accelerator to CPU. If you have GPU or other accelerator, ...", "something else")
    records = [logging.LogRecord("DeepSpeed", logging.WARNING, "file", 1, text, (), None) for text in texts]
    assert [bool(deepspeed_logger.filter(record)) for record in records] == [False, True]


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ({}, "ERROR"),
        ({"NPROC_PER_NODE": "2"}, "FATAL"),
        ({"NPROC_PER_NODE": "2", "RANK": "0"}, "ERROR"),
        ({TORCH_LOG_LEVEL: "INFO"}, "INFO"),
    ],
)
def test_how_much_of_torch_is_printed(given: dict[str, str], level: str) -> None:
    set_library_environment(given)
    assert given[TORCH_LOG_LEVEL] == level
