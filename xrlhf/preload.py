"""What has to be said to libraries before they are imported."""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from importlib.util import find_spec

__all__ = ["GAUDI_MODE", "TORCH_LOG_LEVEL", "quieten_libraries", "set_library_environment"]

GAUDI_MODE = "PT_HPU_LAZY_MODE"
"""0 for eager mode, 1 for lazy mode."""

TORCH_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"
"""From which level on torch's C++ code prints: INFO, WARNING, ERROR or FATAL."""

# Unset, the mode means lazy to transformers and accelerate, and eager to Gaudi's software from 1.20 on. The second one
# keeps int64 tensors from being cast (transformers, docs/source/en/perf_train_gaudi.md).
_GAUDI = {GAUDI_MODE: "0", "PT_ENABLE_INT64_SUPPORT": "1"}


def set_library_environment(environment: MutableMapping[str, str] | None = None) -> None:
    """Set what is not set yet, for the libraries that are installed.

    Has to run before torch is imported, since torch itself imports the libraries of some devices.

    Args:
        environment: The process's own if None.
    """
    env = os.environ if environment is None else environment
    # A process that only starts others says in a line of its own why they cannot meet.
    env.setdefault(TORCH_LOG_LEVEL, "FATAL" if "NPROC_PER_NODE" in env and "RANK" not in env else "ERROR")
    if find_spec("habana_frameworks") is None:
        return
    for name, value in _GAUDI.items():
        env.setdefault(name, value)


def quieten_libraries() -> None:
    """Keep one line out of the output of every command: DeepSpeed prints it when mmengine imports it on a CPU."""
    logging.getLogger("DeepSpeed").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()
