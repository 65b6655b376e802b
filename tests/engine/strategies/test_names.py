"""What strategies refuse before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from toy import SGD_OF_1, tiny_reward_model

from xrlhf.devices import CpuDevice
from xrlhf.engine.build import strategy_config
from xrlhf.engine.launch import Ranks
from xrlhf.engine.strategies import STRATEGIES_BY_NAME, DDPStrategy, FSDPStrategy, SingleStrategy, ZeROStrategy
from xrlhf.errors import ConfigError

TWO = Ranks(0, 2, 0, "pytorch")


def made(strategy: type[SingleStrategy], folder: Path, **options: Any) -> SingleStrategy:
    kwargs = {"launcher": "none", "randomness": {"seed": 0}}
    return strategy(device=CpuDevice(), work_dir=str(folder), env_kwargs=kwargs, experiment_name=str(folder), **options)


@pytest.mark.parametrize("name", STRATEGIES_BY_NAME)
def test_names_stand_for_options_that_a_recipe_may_change(name: str) -> None:
    ranks = Ranks() if name == "single" else TWO
    expected = {**STRATEGIES_BY_NAME[name], "device": CpuDevice}
    found = strategy_config(Config({"strategy": name}), ranks, CpuDevice())
    assert {**found, "device": type(found["device"])} == expected


def test_deepspeed_names_and_options() -> None:
    config = strategy_config(Config({"strategy": "deepspeed_zero3"}), TWO, CpuDevice())
    assert (config["type"], config["stage"]) == (ZeROStrategy, 3)
    chosen = {"type": "zero2", "cpu_offload": True, "config": {"wall_clock_breakdown": True}}
    config = strategy_config(Config({"strategy": chosen}), TWO, CpuDevice())
    assert (config["stage"], config["cpu_offload"], config["config"]) == (2, True, {"wall_clock_breakdown": True})


@pytest.mark.parametrize("name", [name for name in STRATEGIES_BY_NAME if name != "single"])
def test_strategies_of_several_processes_need_some(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^strategy '{name}' needs processes to share the work: set NPROC_PER_NODE"):
        strategy_config(Config({"strategy": name}), Ranks(), CpuDevice())


def test_stages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^ZeROStrategy: stage is 4; accepted are 1, 2 and 3$"):
        made(ZeROStrategy, tmp_path, stage=4)


def test_deepspeed_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    strategy = made(ZeROStrategy, tmp_path, stage=2)
    with pytest.raises(ConfigError, match=r"^strategies zero1 to zero3 need DeepSpeed .*pip install 'xrlhf\[deepspeed"):
        strategy.prepare(tiny_reward_model(), optim_wrapper=SGD_OF_1, dispatch_kwargs={"max_iters": 1})


def test_float16_is_refused_where_gradients_are_split(tmp_path: Path) -> None:
    model = tiny_reward_model()
    model.precision = torch.float16
    strategy = made(ZeROStrategy, tmp_path, stage=1)
    with pytest.raises(ConfigError, match=r"^ZeROStrategy does not train in float16, whose loss scale needs the grad"):
        strategy.prepare(model, optim_wrapper=SGD_OF_1, dispatch_kwargs={"max_iters": 1})
    assert [s.keeps_model_whole for s in (SingleStrategy, DDPStrategy, FSDPStrategy, ZeROStrategy)] == [
        *(True, True, False, False)
    ]
