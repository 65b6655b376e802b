"""From a recipe of reinforcement learning to a run: trained, validated, gone on with, refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from xrlhf.config import load_recipe
from xrlhf.data.practice import practice_tokenizer
from xrlhf.devices import CpuDevice
from xrlhf.engine.build import build_dataset, build_parts, build_rewards, build_runner, build_tokenizer
from xrlhf.engine.checkpoint import load_checkpoint
from xrlhf.engine.dry_run import dry_run, plan_run
from xrlhf.engine.evaluate import evaluate
from xrlhf.engine.launch import Ranks
from xrlhf.errors import CheckpointError, ConfigError, DeviceError
from xrlhf.export.reward import export_checkpoint
from xrlhf.models import backbone_from_config, causal_lm_from_config, causal_lm_from_pretrained
from xrlhf.rl.rollouts import ModelRollouts

pytestmark = pytest.mark.usefixtures("package_logger")

SHIPPED = Path(__file__).resolve().parents[2] / "configs"
SMALL: dict[str, Any] = {
    "max_rollouts": 3,
    "prompts_per_rollout": 4,
    "max_new_tokens": 8,
    "train_dataloader.dataset.sources.0.source.num_groups": 20,
    "val_dataloader.dataset.sources.0.source.num_groups": 6,
    "default_hooks.logger.interval": 1,
    "default_hooks.curves": None,
    "default_hooks.throughput": None,
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model with the practice tokenizer."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = practice_tokenizer()
    torch.manual_seed(0)
    model = causal_lm_from_config(
        "llama",
        vocab_size=1024,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_of(policy: Path, tmp_path: Path) -> Callable[..., Config]:
    """A shipped recipe on that model, three rollouts of a few prompts."""

    def load(name: str, **changes: Any) -> Config:
        options = {**SMALL, "pretrained_model_name_or_path": str(policy), "work_dir": str(tmp_path / "run"), **changes}
        return load_recipe(SHIPPED / f"{name}.py", [f"{key}={value!r}" for key, value in options.items()])

    return load


def scalars(work_dir: Path) -> list[dict[str, Any]]:
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_source_of_weight_0_is_watched_in_validation(recipe_of: Callable[..., Config], tmp_path: Path) -> None:
    rewards = [{"type": "PracticeReward"}, {"type": "PracticeReward", "name": "twice", "weight": 0.0}]
    recipe = recipe_of("tiny_grpo_cpu", work_dir=str(tmp_path / "run"), rewards=rewards)
    build_runner(recipe).train()
    validated = [row for row in scalars(tmp_path / "run") if "val/reward" in row]
    assert len(validated) == 2
    for row in validated:
        assert row["val/reward_practice"] == row["val/reward_twice"] == pytest.approx(row["val/reward"], abs=1e-5)


@pytest.mark.parametrize(("name", "steps"), [("tiny_grpo_cpu", 6), ("tiny_ppo_cpu", 12)])
def test_a_shipped_recipe_trains_and_goes_on(
    recipe_of: Callable[..., Config], tmp_path: Path, name: str, steps: int
) -> None:
    """Stopped after the first step, which lies within the first rollout, it ends at the same weights."""
    whole = build_runner(recipe_of(name, work_dir=str(tmp_path / "whole")))
    whole.train()
    rows = scalars(tmp_path / "whole")
    trained = [row for row in rows if "reward" in row]
    assert len(trained) == steps
    assert trained[0]["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert trained[0]["sampler_gap_max"] < 1e-4
    # Before the first step, and after the last.
    assert [row["step"] for row in rows if "val/reward" in row] == [0, steps]
    table = (tmp_path / "whole" / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(table[0])["prompt"][-1]["role"] == "user"

    first = build_runner(recipe_of(name, **{"default_hooks.checkpoint.interval": 1}))
    first.register_hook(Killed(at=2))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = build_runner(recipe_of(name), resume=True)
    second.train()
    saved = [load_checkpoint(tmp_path / run / f"iter_{steps}.pth")["state_dict"] for run in ("whole", "run")]
    assert saved[0].keys() == saved[1].keys()
    for key, value in saved[0].items():
        assert torch.equal(value, saved[1][key]), key


class Killed(Hook):
    """Ends the run before a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == self.at - 1:
            raise KeyboardInterrupt


def test_a_checkpoint_is_of_one_division_of_the_run(recipe_of: Callable[..., Config], tmp_path: Path) -> None:
    build_runner(recipe_of("tiny_grpo_cpu", max_rollouts=1)).train()
    with pytest.raises(CheckpointError, match=r"iter_2\.pth was trained with num_answers=8 and the recipe says 4: use"):
        build_runner(recipe_of("tiny_grpo_cpu", num_answers=4), resume=True).train()


@pytest.mark.parametrize(
    ("name", "steps", "changes"),
    [
        ("tiny_ppo_cpu", 4, {"val_cfg.num_answers": 2}),
        ("tiny_grpo_cpu", 2, {"model.lora": {"r": 2, "lora_alpha": 8}, "lr": 1e-2}),
    ],
)
def test_what_became_of_a_checkpoint(
    recipe_of: Callable[..., Config], tmp_path: Path, name: str, steps: int, changes: dict[str, Any]
) -> None:
    """Tested, it says what the run's last validation said; exported, the same up to the order of sums."""
    recipe = recipe_of(name, max_rollouts=1, **changes)
    # A run is called by its second, and runs of one process that are called alike write into one log.
    time.sleep(1)
    build_runner(recipe).train()
    logged = [row for row in scalars(tmp_path / "run") if "val/reward" in row][-1]
    found = evaluate(recipe, str(tmp_path / "run" / f"iter_{steps}.pth"), CpuDevice())
    assert found["num_answers"] == 6 * changes.get("val_cfg.num_answers", 1)
    for key, value in found.items():
        assert value == pytest.approx(logged[f"val/{key}"], abs=1e-5), key
    exported = tmp_path / "exported"
    export_checkpoint(recipe, tmp_path / "run" / f"iter_{steps}.pth", exported)
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert evaluate(recipe, str(exported), CpuDevice())["reward"] == pytest.approx(found["reward"], abs=0.5)


def test_answers_of_a_test_are_drawn_as_in_validation(recipe_of: Callable[..., Config], policy: Path) -> None:
    """Greedy ones of three tokens, by the recipe's val_rollouts."""
    recipe = recipe_of("tiny_grpo_cpu")
    recipe.val_rollouts = {**recipe.rollouts, "sampling": {"max_new_tokens": 3, "greedy": True}}
    first, second = (evaluate(recipe, str(policy), CpuDevice()) for _ in range(2))
    assert first == second
    assert first["answer_length"] <= 3
    assert first["num_answers"] == 6
    recipe.val_rollouts.type = DrawsWithACopy
    assert evaluate(recipe, str(policy), CpuDevice()) == first
    recipe.val_rollouts.sampling.max_new_tokens = 300
    with pytest.raises(
        ConfigError,
        match=r"^val_dataloader\.dataset\.max_length is 256 and val_rollouts\.sampling\.max_new_tokens 300, but the",
    ):
        evaluate(recipe, str(policy), CpuDevice())


class DrawsWithACopy:
    """As servers do: with weights that it reads from the folder that it is told."""

    def __init__(self, tokenizer: Any, sampling: Any) -> None:
        self.tokenizer, self.sampling = tokenizer, sampling

    def update_weights(self, folder: Path) -> None:
        model = causal_lm_from_pretrained(str(folder))
        self.own = ModelRollouts(model, self.tokenizer, device=CpuDevice(), sampling=self.sampling)

    def sample(self, rows: Any, k: int, *, key: int) -> Any:
        return self.own.sample(rows, k, key=key)


def test_a_reward_model_computes_where_the_recipe_says(recipe_of: Callable[..., Config], tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    tokenizer = practice_tokenizer()
    backbone_from_config(
        "llama",
        head_init="normal",
        vocab_size=1024,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    recipe = recipe_of("tiny_grpo_cpu")
    rewards = [{"type": "RewardModelReward", "path": str(folder), **more} for more in ({}, {"device": "cpu"})]
    recipe.rewards = rewards
    elsewhere = OtherDevice()
    built: Any = build_rewards(recipe, elsewhere)
    first, second = built.sources.values()
    assert first.scorer.device is elsewhere
    assert type(second.scorer.device) is CpuDevice
    recipe.rewards = [{**rewards[1], "device": "abacus"}]
    with pytest.raises(DeviceError, match=r"^unknown device 'abacus': choose one of "):
        build_rewards(recipe, elsewhere)


class OtherDevice(CpuDevice):
    """The device of the policy."""


def test_the_report_of_a_dry_run(recipe_of: Callable[..., Config]) -> None:
    lines = list(dry_run(recipe_of("tiny_ppo_cpu"), Ranks()))
    expected = (
        "12 optimizer steps: 3 rollouts of 4 prompts with 1 answer(s) each, 4 step(s) on each rollout, "
        "20 prompts in the data"
    )
    assert expected in lines
    assert any("20 of 20 rows became prompts" in line for line in lines)
    memory = lines[lines.index("# ---- memory of one device, at the peak of a step") + 1 :]
    names = ["weights", "gradients", "optimizer", "activations", "buffers", "total"]
    assert [line.split()[0] for line in memory[:6]] == names
    rollout = memory[memory.index("# ---- a rollout") + 1]
    assert rollout == "4 answers of at most 8 tokens for each of 1 device(s), drawn 4 at once; then 4 step(s)"


def test_a_plan_of_a_run_that_draws_answers(recipe_of: Callable[..., Config], policy: Path, tmp_path: Path) -> None:
    """In this process, with a reward model of which a config is there; and by servers, with one that is nowhere."""
    rewards = [{"type": "RewardModelReward", "path": str(policy)}, {"type": "PracticeReward"}]
    given: dict[str, Any] = {"memory_gib": 80.0, "tflops": 1.0, "link_gbs": 10.0}
    lines = list(plan_run(recipe_of("tiny_ppo_cpu", rewards=rewards), 2, CpuDevice(), **given))
    assert "compared with a frozen copy of itself, whose weights are counted too" in lines
    assert lines[lines.index("# ---- a step") + 1].startswith(
        "from the prompts of the first 5 rollout(s), with answers"
    )
    rollout = lines[lines.index("# ---- a rollout") + 1 :]
    assert rollout[0] == "2 answers of at most 8 tokens for each of 2 device(s), drawn 2 at once; then 4 step(s)"
    assert rollout[1].startswith("drawing 0.0")
    assert "reward models 0.00" in rollout[1]
    assert rollout[2].startswith("at least ")
    assert lines[-1].startswith("take --strategy ddp: ")
    little = list(plan_run(recipe_of("tiny_grpo_cpu"), 2, CpuDevice(), memory_gib=1e-4))
    assert "model.reference_device='cpu'" in little[-1]
    # The part of the reference is that of the host then.
    host = list(plan_run(recipe_of("tiny_grpo_cpu", **{"model.reference_device": "cpu"}), 2, CpuDevice(), **given))
    assert any(line.startswith("compared with a model in the memory of the host") for line in host)
    served = {"type": "VllmRollouts", "urls": ["http://127.0.0.1:1"], "model": "m", "sampling": {"max_new_tokens": 9}}
    recipe = recipe_of("tiny_grpo_cpu", rewards=[{"type": "RewardModelReward", "path": str(tmp_path / "nowhere")}])
    recipe.rollouts = served
    lines = list(plan_run(recipe, 2, CpuDevice(), **given))
    assert any(
        line.endswith("drawn by servers, whose memory and time are not planned; then 2 step(s)") for line in lines
    )
    assert any(line.startswith(f"the reward model {tmp_path / 'nowhere'} is left out: ") for line in lines)


def test_a_plan_without_the_prompts(recipe_of: Callable[..., Config], tmp_path: Path) -> None:
    recipe = recipe_of("tiny_grpo_cpu")
    recipe.train_dataloader.dataset["sources"][0]["source"] = str(tmp_path / "nowhere.jsonl")
    lines = list(plan_run(recipe, 2, CpuDevice(), memory_gib=80.0))
    (source,) = (line for line in lines if line.startswith("from assumed, prompts of 256 tokens with answers of 8 tok"))
    assert "nowhere.jsonl" in source


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": []}, r"has no list 'rewards' of what answers are rewarded by"),
        ({"rewards": ["x"]}, r"^rewards\.0 must be a dict with 'type', got str$"),
        (
            {"max_prompt_length": 510},
            r"max_length is 510 and rollouts\.sampling\.max_new_tokens 8, but the model reads at",
        ),
        ({"model.critic": "shared"}, r"^GroupRelative asks no critic: "),
    ],
)
def test_a_recipe_that_is_refused(recipe_of: Callable[..., Config], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(dry_run(recipe_of("tiny_grpo_cpu", **changes), Ranks()))


@pytest.mark.parametrize(
    ("section", "option"), [("train_dataloader", "groups_per_step"), ("val_dataloader", "token_budget")]
)
def test_a_dataloader_of_prompts_with_an_option_of_others(
    recipe_of: Callable[..., Config], section: str, option: str
) -> None:
    recipe = recipe_of("tiny_grpo_cpu")
    recipe[section][option] = 4
    with pytest.raises(ConfigError, match=rf"^{section} has no option '{option}'; it takes dataset"):
        build_parts(recipe, Ranks())


def test_validation_has_prompts_too(recipe_of: Callable[..., Config]) -> None:
    recipe = recipe_of("tiny_grpo_cpu")
    recipe.val_dataloader = load_recipe(SHIPPED / "tiny_dpo_cpu.py").val_dataloader
    with pytest.raises(
        ConfigError, match=r"^train_dataloader holds prompts: set val_dataloader\.dataset\.type to Prompt"
    ):
        build_parts(recipe, Ranks())


def test_prompts_and_answers_are_not_mixed_up(recipe_of: Callable[..., Config], policy: Path) -> None:
    recipe = recipe_of("tiny_grpo_cpu")
    with pytest.raises(
        ConfigError, match=r"^train_dataloader of .* holds prompts alone, whose answers are drawn while"
    ):
        build_dataset(recipe, "train_dataloader", build_tokenizer(recipe))
    judged_by_pairs = recipe_of("tiny_grpo_cpu")
    judged_by_pairs.val_dataloader = load_recipe(SHIPPED / "tiny_dpo_cpu.py").val_dataloader
    with pytest.raises(ConfigError, match=r"set val_dataloader\.dataset\.type to PromptDataset"):
        evaluate(judged_by_pairs, "anything", CpuDevice())
    given = load_recipe(SHIPPED / "tiny_dpo_cpu.py", [f"pretrained_model_name_or_path={str(policy)!r}"])
    given.train_dataloader = recipe.train_dataloader
    given.val_dataloader = None
    with pytest.raises(ConfigError, match=r"holds prompts alone, and a PolicyModel learns from given answers: set"):
        build_parts(given, Ranks())
    recipe.train_dataloader = load_recipe(SHIPPED / "tiny_dpo_cpu.py").train_dataloader
    recipe.val_dataloader = None
    with pytest.raises(
        ConfigError, match=r"^an ActorCritic draws its own answers: set train_dataloader\.dataset\.type"
    ):
        build_parts(recipe, Ranks())
