"""Registers ``torch.hpu``, whose functions answer for one card."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import torch

from habana_frameworks import note

note("import habana_frameworks.torch", os.environ.get("PT_HPU_LAZY_MODE"))

hpu = ModuleType("torch.hpu")
_functions: dict[str, Any] = {
    "is_available": lambda: os.environ.get("STAND_IN_HAS_NO_CARD") is None,
    "device_count": lambda: 1,
    "current_device": lambda: note("current_device") or 0,
    "get_device_name": lambda index=None: "STAND-IN",
    "synchronize": lambda: note("synchronize"),
    "max_memory_allocated": lambda: 5 * 2**20,
    "manual_seed_all": lambda seed: note("manual_seed_all", seed),
}
for _name, _function in _functions.items():
    setattr(hpu, _name, _function)
torch._register_device_module("hpu", hpu)
