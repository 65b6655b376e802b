"""Every recipe that reads a hub, built and stepped as shipped, with a tiny model of its architecture and a few rows.

Only names change: the model's becomes a folder with a random one of the same architecture and a tokenizer of the same
habits, the data set's a folder of rows with its columns. Folds get larger shares, since the rows are few.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tiny_models import CHATML, FAMILIES, TINY, byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from xrlhf.cli.options import INJECTED
from xrlhf.config import check_recipe, find_recipe, list_recipes, load_recipe
from xrlhf.devices import CpuDevice
from xrlhf.engine.build import build_runner, build_tokenizer
from xrlhf.models import backbone_from_config
from xrlhf.models.internlm2 import register_internlm2

ROWS = 24
STEPS = 3
LLAMA_2 = (
    "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
    "{% for m in (messages[1:] if system is not none else messages) %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content if loop.first and system else m.content %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""As Llama-2-chat writes conversations: no header asks for an answer."""
EOT = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
LN2 = math.log(2)
FOCAL = LN2 - 0.04 * math.log(5)


def ask(number: int) -> str:
    return f"What is {number} plus {number}?"


def say(number: int, good: bool) -> str:
    return f"It is {2 * number}." if good else "Why would I know?"


def messages(number: int, good: bool) -> list[dict[str, str]]:
    return [{"role": "user", "content": ask(number)}, {"role": "assistant", "content": say(number, good)}]


def transcript(number: int, good: bool) -> str:
    return f"\n\nHuman: {ask(number)}\n\nAssistant: {say(number, good)}"


LAYOUTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "Anthropic/hh-rlhf": lambda i: {"chosen": transcript(i, True), "rejected": transcript(i, False)},
    "Intel/orca_dpo_pairs": lambda i: {
        "system": "You are a calculator." if i % 2 else "",
        "question": ask(i),
        "chosen": say(i, True),
        "rejected": say(i, False),
    },
    "hendrydong/preference_700K": lambda i: {
        "chosen": messages(i, True),
        "rejected": messages(i, False),
        "chosen_score": 1.0,
        "rejected_score": 1.0,
    },
    "argilla/ultrafeedback-binarized-preferences-cleaned": lambda i: {
        "source": "sums",
        "prompt": ask(i),
        "chosen": messages(i, True),
        "chosen-rating": 5.0,
        "chosen-model": "a",
        "rejected": messages(i, False),
        "rejected-rating": 1.0,
        "rejected-model": "b",
    },
    "Skywork/Skywork-Reward-Preference-80K-v0.2": lambda i: {
        "chosen": messages(i, True),
        "rejected": messages(i, False),
        "source": "sums",
    },
    "tatsu-lab/alpaca": lambda i: {"instruction": ask(i), "input": "", "output": say(i, True), "text": "not read"},
    "HuggingFaceH4/ultrachat_200k": lambda i: {
        "prompt": ask(i),
        "prompt_id": str(i),
        "messages": [*messages(i, True), *messages(i + 1, True)],
    },
    "openai/gsm8k": lambda i: {"question": ask(i), "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"},
    "mlabonne/orpo-dpo-mix-40k": lambda i: {
        "source": "sums",
        "chosen": messages(i, True),
        "rejected": messages(i, False),
        "prompt": ask(i),
        "question": ask(i),
    },
}
"""A row of every data set, by its name on the hub (columns as its card has them)."""


@dataclass(frozen=True)
class StandIn:
    """A tiny model in the place of a published one.

    Args:
        model_type: Its architecture.
        template: The chat template of its tokenizer; None for a base that has none.
        special: Special tokens of the tokenizer that matter.
        config: What its config has beside the usual sizes.
    """

    model_type: str
    template: str | None = CHATML
    special: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


INTERNLM2 = "internlm2" if importlib.util.find_spec("xrlhf.models.internlm2") else "llama"
STAND_INS = {
    # As OPT-350M has it: smaller embeddings than layers, norms behind the blocks.
    "facebook/opt-350m": StandIn(
        "opt", None, config={"word_embed_proj_dim": 16, "do_layer_norm_before": False, "dropout": 0.1}
    ),
    "meta-llama/Llama-2-7b-hf": StandIn("llama", None, {"bos_token": "<s>", "pad_token": None}),
    "meta-llama/Llama-2-7b-chat-hf": StandIn("llama", LLAMA_2, {"bos_token": "<s>", "pad_token": None}),
    "google/gemma-2b-it": StandIn("gemma", config={"num_key_value_heads": 1}),
    "meta-llama/Meta-Llama-3-8B-Instruct": StandIn("llama", EOT, {"pad_token": None}),
    "internlm/internlm2-chat-1_8b-sft": StandIn(INTERNLM2),
    "internlm/internlm2-1_8b": StandIn(INTERNLM2, None),
    "Qwen/Qwen3-1.7B-Base": StandIn("qwen3", config={"tie_word_embeddings": True}),
    "Qwen/Qwen3-1.7B": StandIn("qwen3", config={"tie_word_embeddings": True}),
    "meta-llama/Llama-3.2-3B-Instruct": StandIn("llama", EOT, {"pad_token": None}),
    "meta-llama/Llama-3.2-3B": StandIn("llama", None, {"bos_token": "<s>", "pad_token": None}),
    "google/gemma-3-1b-it": StandIn("gemma3_text", config={"sliding_window": 32}),
}

ON_THE_HUB = [name for name in list_recipes() if not name.startswith("tiny_") and name != "own_data_reward"]
REINFORCED = {
    "llama2_7b_ppo_lora": "meta-llama/Llama-2-7b-chat-hf",
    "internlm2_1_8b_ppo": "internlm/internlm2-chat-1_8b-sft",
    "qwen3_1_7b_grpo_gsm8k": "Qwen/Qwen3-1.7B",
}
"""Recipes that draw their own answers, and what their policy comes from."""
ON_THE_HUB = [name for name in ON_THE_HUB if name not in REINFORCED]
REWARDS = [name for name in ON_THE_HUB if "reward" in name.split("_")]
POLICIES = [name for name in ON_THE_HUB if name not in REWARDS]


def base_of(recipe: Any) -> str:
    return str(recipe.model.backbone.path)


def save_stand_in(name: str, folder: Path) -> None:
    stand_in = STAND_INS[name]
    register_internlm2()
    options = {**TINY, **FAMILIES[stand_in.model_type], "max_position_embeddings": 4096, **stand_in.config}
    options = {key: value for key, value in options.items() if value is not None}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(stand_in.model_type, **options)).save_pretrained(folder)
    byte_tokenizer(stand_in.template, **stand_in.special).save_pretrained(folder)


def save_rows(recipe: Any, folder: Path) -> None:
    """Every split that the recipe reads, under the names that files on the hub have."""
    (folder / "data").mkdir(parents=True)
    lines = [json.dumps(LAYOUTS[recipe.data_path](i)) + "\n" for i in range(ROWS)]
    datasets_of = (recipe[section].dataset for section in ("train_dataloader", "val_dataloader"))
    for split in {item.source.split for dataset in datasets_of for item in dataset.sources}:
        (folder / "data" / f"{split}-00000-of-00001.jsonl").write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def shrunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A shipped recipe with stand-ins for what is on the hub, two steps long."""
    monkeypatch.setenv("XRLHF_CACHE", str(tmp_path / "tables"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()

    def load(name: str) -> Any:
        file = find_recipe(name)
        shipped = load_recipe(file)
        save_stand_in(base_of(shipped), tmp_path / "model")
        save_rows(shipped, tmp_path / "rows")
        base = "pretrained" if "pretrained" in shipped else "pretrained_model_name_or_path"
        options = [f"{base}={tmp_path / 'model'}", f"data_path={tmp_path / 'rows'}", f"work_dir={tmp_path / name}"]
        sections = ("train_dataloader", "val_dataloader")
        options += [f"{section}.dataset.fold.count=3" for section in sections if "fold" in shipped[section].dataset]
        options += ["groups_per_step=4", f"train_cfg.max_steps={STEPS}", "train_cfg.max_epochs=None"]
        recipe = load_recipe(file, [*options, "default_hooks.logger.interval=1"])
        check_recipe(recipe, INJECTED)
        return recipe

    return load


def test_every_recipe_of_the_hub_has_its_stand_ins() -> None:
    recipes = [load_recipe(find_recipe(name)) for name in ON_THE_HUB]
    assert {base_of(recipe) for recipe in recipes} == STAND_INS.keys()
    drawn = [load_recipe(find_recipe(name)) for name in REINFORCED]
    assert {recipe.data_path for recipe in (*recipes, *drawn)} == LAYOUTS.keys()


@dataclass(frozen=True)
class Steps:
    """What ``STEPS`` steps of a recipe did.

    Args:
        losses: As they were logged.
        after: The model's state afterwards.
        changed: The names in it that have other values than before.
        dataset: What was trained on.
        tokenizer: The prepared one.
    """

    losses: list[float]
    after: dict[str, torch.Tensor]
    changed: set[str]
    dataset: Any
    tokenizer: Any


def take_steps(recipe: Any) -> Steps:
    runner = build_runner(recipe, device=CpuDevice())
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    folder = Path(recipe.work_dir)
    logged = [
        json.loads(line)
        for path in folder.glob("*/vis_data/scalars.json")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    losses = [entry["loss"] for entry in logged if "lr" in entry]
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) for loss in losses)
    assert (folder / f"iter_{STEPS}.pth").is_file()
    report = json.loads((folder / "data_report.json").read_text(encoding="utf-8"))
    assert [next(iter(report[split].values()))["left_out"] for split in ("train", "val")] == [{}, {}]
    after = runner.strategy.module.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    return Steps(losses, after, changed, runner.train_loop.dataloader.dataset, build_tokenizer(recipe))


@pytest.mark.usefixtures("package_logger")
@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_model_steps(name: str, shrunk: Callable[[str], Any]) -> None:
    if name.endswith("_qlora"):
        pytest.importorskip("bitsandbytes")
    steps = take_steps(shrunk(name))
    assert steps.losses[0] == pytest.approx(FOCAL if "internlm2" in name else LN2, abs=1e-4)
    head = {key for key in steps.after if ".score" in key or ".v_head" in key}
    assert steps.changed & head
    # Adapters leave everything else as it was; all weights move otherwise (a bias that scores do not see may not).
    if "lora" in name:
        assert all("lora_" in key or key in head or "trainable_tokens" in key for key in steps.changed)
    else:
        assert len(steps.changed) > 0.8 * len(steps.after)


@pytest.mark.usefixtures("package_logger")
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_steps(name: str, shrunk: Callable[[str], Any]) -> None:
    """DPO begins at ln 2; small random weights give every token the same probability, near enough."""
    recipe = shrunk(name)
    steps = take_steps(recipe)
    uniform = math.log(max(len(value) for key, value in steps.after.items() if "embed" in key))
    expected = {"sft": (uniform, 0.1), "dpo": (LN2, 1e-3), "orpo": (uniform + recipe.get("beta", 0.0) * LN2, 0.1)}
    first, tolerance = next(expected[method] for method in expected if method in name.split("_"))
    assert steps.losses[0] == pytest.approx(first, abs=tolerance)
    trained = {key for key in steps.after if not key.startswith("reference.")}
    assert steps.changed <= trained, "the reference stays"
    if recipe.get("lora") is not None:
        assert steps.changed
        assert all("lora_" in key or "trainable_tokens" in key for key in steps.changed)
    else:
        assert len(steps.changed) > 0.8 * len(trained)
    # What is learnt is the answers with what closes them, and nothing of the questions.
    group = steps.dataset[0]
    learnt = steps.tokenizer.decode(np.concatenate([group.prompt_ids, *group.response_ids])[group.is_target])
    assert "It is" in learnt
    rendered = steps.tokenizer.apply_chat_template(messages(1, True), tokenize=False)
    assert rendered.partition(say(1, True))[2].strip() in learnt
    assert "plus" not in learnt


@pytest.mark.usefixtures("package_logger")
@pytest.mark.parametrize("name", REINFORCED)
def test_reinforcement_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of every rollout has ratios of 1; the reference stays."""
    monkeypatch.setenv("XRLHF_CACHE", str(tmp_path / "tables"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    save_stand_in(REINFORCED[name], tmp_path / "model")
    save_reward_stand_in(REINFORCED[name], tmp_path / "reward")
    file = find_recipe(name)
    shipped = load_recipe(file)
    save_rows(shipped, tmp_path / "rows")
    base = "pretrained" if "pretrained" in shipped else "pretrained_model_name_or_path"
    options = [f"{base}={tmp_path / 'model'}", f"data_path={tmp_path / 'rows'}", f"work_dir={tmp_path / name}"]
    options += ["prompts_per_rollout=4", "max_new_tokens=6", "default_hooks.logger.interval=1"]
    options += ["train_cfg.max_rollouts=1", "train_cfg.max_epochs=None", "precision=float32"]
    sections = ("train_dataloader", "val_dataloader")
    options += [f"{section}.dataset.fold.count=3" for section in sections if "fold" in shipped[section].dataset]
    options += [f"reward_model={tmp_path / 'reward'}"] if "reward_model" in shipped else ["data_config=None"]
    recipe = load_recipe(file, options)
    check_recipe(recipe, INJECTED)
    runner = build_runner(recipe, device=CpuDevice())
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    files = (tmp_path / name).glob("*/vis_data/scalars.json")
    logged = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    steps = [entry for entry in logged if "ratio_max" in entry]
    assert steps[0]["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert steps[0]["sampler_gap_max"] < 1e-2
    assert any("val/reward" in entry for entry in logged)
    after = runner.strategy.module.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert not any(key.startswith("reference.") for key in changed)
    if "ppo" in name:
        assert any(key.startswith(("value_head", "critic")) for key in changed)


def save_reward_stand_in(name: str, folder: Path) -> None:
    """A reward model that reads what the stand-in of the policy reads."""
    stand_in = STAND_INS[name]
    options = {**TINY, **FAMILIES[stand_in.model_type], "max_position_embeddings": 4096, **stand_in.config}
    options = {key: value for key, value in options.items() if value is not None}
    register_internlm2()
    if stand_in.model_type == "internlm2":
        # Its scores are read at a token that its config names.
        options["reward_token_id"] = byte_tokenizer(CHATML).convert_tokens_to_ids("<|im_end|>")
    torch.manual_seed(1)
    backbone_from_config(stand_in.model_type, head_init="normal", **options).save_pretrained(folder)
    byte_tokenizer(stand_in.template or CHATML, **stand_in.special).save_pretrained(folder)


@pytest.mark.parametrize("name", REWARDS)
def test_the_scored_token_is_the_end_of_the_conversation(name: str, shrunk: Callable[[str], Any]) -> None:
    """A token of its own that is not padding: not the newline behind it, not what comes before the padding."""
    recipe = shrunk(name)
    tokenizer = build_tokenizer(recipe)
    text = tokenizer.apply_chat_template(messages(1, True), tokenize=False)
    ids = tokenizer(text)["input_ids"]
    ending = recipe.tokenizer.get("ending")
    expected = tokenizer.eos_token if ending in (None, "eos") else ending
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == expected
    assert tokenizer.pad_token_id not in ids
    assert tokenizer.convert_tokens_to_ids(tokenizer.pad_token) == tokenizer.pad_token_id


def test_the_templates_of_bases_without_one_write_what_the_examples_wrote(shrunk: Callable[[str], Any]) -> None:
    tokenizer = build_tokenizer(shrunk("opt_350m_reward"))
    assert tokenizer.apply_chat_template(messages(1, True), tokenize=False) == transcript(1, True) + "<|im_end|>"
    prompt = tokenizer.apply_chat_template(messages(1, True)[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == f"\n\nHuman: {ask(1)}\n\nAssistant:"


def test_the_question_and_answer_template(shrunk: Callable[[str], Any]) -> None:
    tokenizer = build_tokenizer(shrunk("llama2_7b_reward_lora"))
    system = [{"role": "system", "content": "S"}, *messages(1, True)]
    assert tokenizer.apply_chat_template(system, tokenize=False) == (
        f"<s>S\n\nQuestion: {ask(1)}\n\nAnswer: {say(1, True)}<|im_end|>"
    )
    prompt = tokenizer.apply_chat_template(messages(1, True)[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == f"<s>Question: {ask(1)}\n\nAnswer: "


@pytest.mark.usefixtures("package_logger")
@pytest.mark.parametrize("name", ["gemma_2b_reward", "llama3_8b_reward", "qwen3_1_7b_reward"])
def test_the_options_that_the_headers_show(name: str, shrunk: Callable[[str], Any], tmp_path: Path) -> None:
    """Adapters on a base in bfloat16, as the headers have them on the command line."""
    header = find_recipe(name).read_text(encoding="utf-8").split('"""')[1]
    prefix = "model." if "model.lora" in header else ""
    dtype = f"{'model.backbone.' if prefix else ''}dtype=bfloat16"
    lora = f'{prefix}lora="{{r: 64, lora_alpha: 128}}"'
    assert dtype in header
    assert lora in header
    shrunk(name)
    options = [dtype, lora.replace('"', ""), "lr=1e-4", f"pretrained={tmp_path / 'model'}"]
    options += [f"data_path={tmp_path / 'rows'}", f"work_dir={tmp_path / 'lora'}", "groups_per_step=4"]
    options += ["train_cfg.max_steps=1", "train_cfg.max_epochs=None", "val_dataloader=None"]
    recipe = load_recipe(find_recipe(name), options)
    check_recipe(recipe, INJECTED)
    assert recipe.model.lora == {"r": 64, "lora_alpha": 128}
    assert recipe.optim_wrapper.optimizer.lr == 1e-4
    runner = build_runner(recipe, device=CpuDevice())
    runner.train()
    weights = {key: value.dtype for key, value in runner.strategy.module.state_dict().items()}
    assert {dtype for key, dtype in weights.items() if "lora_" in key} == {torch.float32}
    assert torch.bfloat16 in {dtype for key, dtype in weights.items() if "base_layer" in key}
