"""What is said to libraries before they are imported."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from xrlhf.preload import quieten_libraries


@pytest.fixture
def deepspeed_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("DeepSpeed")
    before = list(logger.filters)
    yield logger
    logger.filters[:] = before


def test_the_line_of_every_start_is_left_out_and_others_are_not(
    deepspeed_logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    deepspeed_logger.propagate = True
    for _ in range(2):
        quieten_libraries()
    assert len(deepspeed_logger.filters) == 1
    deepspeed_logger.warning("Setting accelerator to CPU. If you have GPU or other accelerator, ...")
    deepspeed_logger.warning("something else")
    assert caplog.messages == ["something else"]
