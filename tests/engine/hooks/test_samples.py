"""Answers to fixed prompts while a policy is trained: written where they belong, and training goes on as without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xrlhf.config import find_recipe, load_recipe
from xrlhf.devices import CpuDevice
from xrlhf.engine.build import build_runner
from xrlhf.engine.hooks import SampleHook
from xrlhf.errors import ConfigError

HOOK = "xrlhf.engine.hooks.SampleHook"
OPTIONS = [
    "train_cfg.max_epochs=None",
    "train_cfg.max_steps=4",
    "train_dataloader.dataset.sources.0.source.num_groups=40",
    "val_dataloader.dataset.sources.0.source.num_groups=8",
    "groups_per_step=4",
    "default_hooks.curves=None",
    "default_hooks.throughput=None",
    "default_hooks.checkpoint.interval=4",
]


def run(work_dir: Path, *options: str, name: str = "tiny_sft_cpu") -> Any:
    recipe = load_recipe(find_recipe(name), [*OPTIONS, f"work_dir={work_dir}", *options])
    runner = build_runner(recipe, device=CpuDevice())
    runner.train()
    return runner


@pytest.mark.usefixtures("package_logger")
def test_samples_are_written_and_training_is_left_alone(tmp_path: Path) -> None:
    sampling = {"max_new_tokens": 5}
    prompts = ["What is a verb?", "Hello"]
    hook = f"custom_hooks={[{'type': HOOK, 'interval': 2, 'prompts': prompts, 'sampling': sampling}]}"
    with_hook = run(tmp_path / "with", hook)
    without = run(tmp_path / "without")
    rows = [json.loads(line) for line in (tmp_path / "with" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 2, 2, 4, 4]
    assert rows[0]["prompt"] == [{"role": "user", "content": "What is a verb?"}]
    assert all(row["num_tokens"] <= 5 and isinstance(row["response"], str) for row in rows)
    scalars = next((tmp_path / "with").glob("*/vis_data/scalars.json")).read_text()
    assert '"sample/num_tokens"' in scalars
    first, second = (runner.strategy.module.state_dict() for runner in (with_hook, without))
    assert all(bool((first[name] == second[name]).all()) for name in first)


def test_a_reward_model_writes_no_answers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SampleHook: a RewardModel writes no answers"):
        run(tmp_path, f"custom_hooks={[{'type': HOOK, 'prompts': ['Hello']}]}", name="tiny_reward_cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "Hello"}, "a list of questions"),
        ({"prompts": []}, "a list of questions"),
        ({"prompts": [""]}, "a list of questions"),
        ({"prompts": ["Hello"], "interval": 0}, "interval must be at least 1 step"),
        ({"prompts": ["Hello"], "sampling": {"temperature": 0}}, "temperature must be above 0"),
        ({"prompts": ["Hello"], "sampling": {"heat": 1}}, "SampleHook: sampling: .*heat"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SampleHook(**options)
