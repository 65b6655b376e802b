"""Registry nodes: what a recipe's ``type`` may name.

Each node is a child of mmengine's node of the same kind, so a recipe may name mmengine's own parts as well. A recipe
normally imports the class or function and writes it as ``type``; a registered short name works too.
"""

from __future__ import annotations

from mmengine.registry import HOOKS as _HOOKS
from mmengine.registry import LOG_PROCESSORS as _LOG_PROCESSORS
from mmengine.registry import LOOPS as _LOOPS
from mmengine.registry import MODELS as _MODELS
from mmengine.registry import STRATEGIES as _STRATEGIES
from mmengine.registry import Registry

__all__ = [
    "DATASETS",
    "HOOKS",
    "LOG_PROCESSORS",
    "LOOPS",
    "LOSSES",
    "MAP_FNS",
    "MODELS",
    "REWARDS",
    "ROLLOUTS",
    "SOURCES",
    "STRATEGIES",
    "TOKENIZERS",
]

MODELS = Registry("model", parent=_MODELS, scope="xrlhf", locations=["xrlhf.models"])
LOSSES = Registry("loss", scope="xrlhf", locations=["xrlhf.losses"])
TOKENIZERS = Registry("tokenizer", scope="xrlhf", locations=["xrlhf.models"])
SOURCES = Registry("source", scope="xrlhf", locations=["xrlhf.data"])
MAP_FNS = Registry("map function", scope="xrlhf", locations=["xrlhf.data.map_fns"])
DATASETS = Registry("dataset", scope="xrlhf", locations=["xrlhf.data"])
REWARDS = Registry("reward", scope="xrlhf", locations=["xrlhf.rl.rewards"])
ROLLOUTS = Registry("rollouts", scope="xrlhf", locations=["xrlhf.rl.rollouts"])
LOOPS = Registry("loop", parent=_LOOPS, scope="xrlhf", locations=["xrlhf.engine.loops"])
HOOKS = Registry("hook", parent=_HOOKS, scope="xrlhf", locations=["xrlhf.engine.hooks"])
STRATEGIES = Registry("strategy", parent=_STRATEGIES, scope="xrlhf", locations=["xrlhf.engine.strategies"])
LOG_PROCESSORS = Registry("log processor", parent=_LOG_PROCESSORS, scope="xrlhf", locations=["xrlhf.engine"])
