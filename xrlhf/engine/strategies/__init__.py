"""Strategies: how one step's work is spread over devices, and how state is saved."""

from xrlhf.engine.strategies.ddp import DDPStrategy
from xrlhf.engine.strategies.single import SingleStrategy

__all__ = ["STRATEGY_NAMES", "DDPStrategy", "SingleStrategy"]

STRATEGY_NAMES: dict[str, type[SingleStrategy]] = {"single": SingleStrategy, "ddp": DDPStrategy}
"""What ``--strategy`` may name."""
