"""PPO that asks this project's server for its rewards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny_backbone, tiny_causal_lm

from xrlhf.config import load_recipe
from xrlhf.data.practice import practice_tokenizer
from xrlhf.engine.build import build_runner
from xrlhf.rl import PromptRow, Sample
from xrlhf.rl.rewards import RemoteReward, RewardModelReward
from xrlhf.rl.rewards.remote import PROTOCOLS
from xrlhf.structures import as_ids

pytestmark = pytest.mark.slow

ROLLOUTS, PROMPTS = 3, 6
SMALL = [
    *(f"max_rollouts={ROLLOUTS}", f"prompts_per_rollout={PROMPTS}", "max_new_tokens=8", "minibatches=2", "lr=1e-2"),
    "train_dataloader.dataset.sources.0.source.num_groups=20",
    "val_dataloader.dataset.sources.0.source.num_groups=6",
    *("default_hooks.logger.interval=1", "log_processor.window_size=1"),
    *("default_hooks.curves=None", "default_hooks.throughput=None"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy and a tiny reward model, of one tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = practice_tokenizer()
    makers = {"policy": tiny_causal_lm, "reward": tiny_backbone}
    for number, (name, make) in enumerate(makers.items()):
        make(seed=number, vocab_size=len(tokenizer)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def rewards_of(run: Path) -> list[tuple[int, str, float]]:
    """Every reward that a run logged, of training and of validation, with its step."""
    (file,) = run.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(row["step"], name, row[name]) for row in rows for name in ("reward", "val/reward") if name in row]


def samples_of(*texts: str) -> list[Sample]:
    return [Sample(as_ids([1]), np.zeros(1, np.float32), text, "stop") for text in texts]


@pytest.mark.usefixtures("package_logger")
def test_rewards_are_those_of_the_model_in_the_process(
    models: Path,
    repo_root: Path,
    serve_process: Callable[..., Any],
    xrlhf: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three rollouts of PPO with equal seeds: answers, steps and rewards of one run are those of the other."""
    monkeypatch.setenv("REWARD_KEY", "open-sesame")
    environment = {"REWARD_KEY": "open-sesame"}
    server = serve_process("--api-key-env", "REWARD_KEY", model=models / "reward", environment=environment)
    here = {"type": "RewardModelReward", "path": str(models / "reward")}
    policy = f"pretrained_model_name_or_path={models / 'policy'}"
    options = [policy, f"rewards=[{here}]", f"work_dir={tmp_path / 'here'}", *SMALL]
    build_runner(load_recipe(repo_root / "configs" / "tiny_ppo_cpu.py", options)).train()

    remote = {"tokenizer_path": str(models / "reward"), "api_key_env": "REWARD_KEY", "batch_size": 4}
    served = {"type": "RemoteReward", "url": f"{server.url}/get_reward", **remote}
    done = xrlhf(
        *("train", "tiny_ppo_cpu", "--device", "cpu", "--work-dir", tmp_path / "served"),
        *("--cfg-options", policy, f"rewards=[{served}]", *SMALL),
        environment=environment,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    of_here, of_served = (rewards_of(tmp_path / name) for name in ("here", "served"))
    assert [kind for _, kind, _ in of_here].count("val/reward") == 2
    values = {round(value, 3) for _, kind, value in of_here if kind == "reward"}
    assert len(values) == ROLLOUTS, "the rollouts are rewarded alike, so the comparison shows nothing"
    assert [row[:2] for row in of_served] == [row[:2] for row in of_here]
    assert [row[2] for row in of_served] == pytest.approx([row[2] for row in of_here], abs=1e-4)

    rows = [PromptRow([{"role": "user", "content": "What is 2 + 3?"}], as_ids([1]), 0)]
    samples = [samples_of("It is 5.", "No idea.", "Five, I think; ask somebody else.")]
    wanted = RewardModelReward(here["path"]).rewards(rows, samples)
    assert np.ptp(wanted) > 0.01
    routes = ("get_reward", "classify", "pooling", "classify")
    for protocol, route in zip(PROTOCOLS, routes, strict=True):
        source = RemoteReward(f"{server.url}/{route}", protocol=protocol, **remote)  # type: ignore[arg-type]
        np.testing.assert_allclose(source.rewards(rows, samples), wanted, atol=1e-4, err_msg=protocol)
    assert server.end() == 0
    assert "error" not in server.output
