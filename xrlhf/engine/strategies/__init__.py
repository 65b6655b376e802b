"""Strategies: how one step's work is spread over devices, and how state is saved."""

from typing import Any

from xrlhf.engine.strategies.ddp import DDPStrategy
from xrlhf.engine.strategies.distributed import DistributedStrategy
from xrlhf.engine.strategies.fsdp import FSDPStrategy
from xrlhf.engine.strategies.single import SingleStrategy
from xrlhf.engine.strategies.zero import ZeROStrategy

__all__ = [
    "STRATEGIES_BY_NAME",
    "DDPStrategy",
    "DistributedStrategy",
    "FSDPStrategy",
    "SingleStrategy",
    "ZeROStrategy",
]

STRATEGIES_BY_NAME: dict[str, dict[str, Any]] = {
    "single": {"type": SingleStrategy},
    "ddp": {"type": DDPStrategy},
    "fsdp": {"type": FSDPStrategy},
    "fsdp_offload": {"type": FSDPStrategy, "cpu_offload": True},
    "zero1": {"type": ZeROStrategy, "stage": 1},
    "zero2": {"type": ZeROStrategy, "stage": 2},
    "zero2_offload": {"type": ZeROStrategy, "stage": 2, "cpu_offload": True},
    "zero3": {"type": ZeROStrategy, "stage": 3},
    "zero3_offload": {"type": ZeROStrategy, "stage": 3, "cpu_offload": True},
}
"""What ``--strategy`` may name, and the options that each name stands for."""
