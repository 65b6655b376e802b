"""SFT through adapters, the adapter merged, DPO on what that gives, and a talk with the end of it: shipped recipes and
the command line alone.

The models are tiny ones on disk, the data a few rows of the layouts that the recipes read, everything else is as
shipped. The base has no chat template, so a stage that works has its template from the stage before.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from tiny_models import tiny_backbone
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from xrlhf.data.practice import practice_groups, practice_tokenizer
from xrlhf.models.templates import CHATML

pytestmark = pytest.mark.slow

SFT_STEPS, DPO_STEPS = 12, 6
SFT, DPO = "llama2_7b_sft_lora", "internlm2_1_8b_dpo"
LENGTH = [
    *("train_cfg.max_epochs=None", "default_hooks.checkpoint.max_keep=None", "default_hooks.curves=None"),
    # Every step by itself, and not the mean of the last ten.
    *("default_hooks.logger.interval=1", "log_processor.window_size=1"),
]
LORA = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear"}
QUESTION = "How do I keep bread fresh?"


@dataclass(frozen=True)
class Stages:
    """The folder of all stages, and the overrides that each of them needs."""

    folder: Path
    sft: list[str]
    dpo: list[str]

    def losses(self, run: Path) -> list[float]:
        """What was logged of every step of training, through all starts of a run."""
        files = sorted(run.glob("*/vis_data/scalars.json"))
        rows = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
        return [row["loss"] for row in rows if "lr" in row]


def write_parts(folder: Path) -> None:
    """A base without a chat template, a reward model, and rows for both stages."""
    tokenizer = practice_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tiny_backbone(seed=7, vocab_size=len(tokenizer)).save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder / "base")
    examples, pairs = [], []
    for group in practice_groups(400):
        best, worst = group.responses[0], group.responses[-1]
        question = group.prompt[-1]["content"]
        examples.append({"system": "", "question": question, "chosen": best[0]["content"]})
        pairs.append(
            {
                "source": "practice",
                "prompt": question,
                "chosen": [*group.prompt, *best],
                "chosen-rating": 5.0,
                "rejected": [*group.prompt, *worst],
                "rejected-rating": 2.0,
            }
        )
    for name, rows in (("examples", examples), ("pairs", pairs)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, xrlhf_in: Callable[..., CompletedProcess[str]]) -> Stages:
    folder = tmp_path_factory.mktemp("stages")
    write_parts(folder)
    examples = {"source": str(folder / "examples.jsonl"), "map_fn": "xrlhf.data.map_fns.orca_map_fn"}
    pairs = {"source": str(folder / "pairs.jsonl"), "map_fn": "xrlhf.data.map_fns.ultrafeedback_cleaned_map_fn"}
    sft = [
        *(f"pretrained={folder / 'base'}", "pad_token=<|pad|>", "tokenizer.chat_template=chatml"),
        *(f"sources=[{examples}]", f"lora={LORA}", "dtype=float32", "precision=float32", "lr=2e-2"),
        *("groups_per_step=16", f"train_cfg.max_steps={SFT_STEPS}", "default_hooks.checkpoint.interval=6", *LENGTH),
    ]
    dpo = [
        *(f"pretrained_model_name_or_path={folder / 'merged'}", f"sources=[{pairs}]", "precision=float32", "lr=1e-3"),
        *("gradient_checkpointing=False", f"train_cfg.max_steps={DPO_STEPS}", "default_hooks.checkpoint.interval=3"),
        *LENGTH,
    ]
    last = folder / "sft" / f"iter_{SFT_STEPS}.pth"
    commands: tuple[list[Any], ...] = (
        ["train", SFT, "--work-dir", folder / "sft", "--cfg-options", *sft],
        ["convert", "pth_to_hf", SFT, last, folder / "adapter", "--adapter", "--cfg-options", *sft],
        ["convert", "merge", folder / "base", folder / "adapter", folder / "merged"],
        ["train", DPO, "--work-dir", folder / "copy", "--cfg-options", *dpo],
        [
            *("convert", "pth_to_hf", DPO, folder / "copy" / f"iter_{DPO_STEPS}.pth", folder / "policy"),
            *("--cfg-options", *dpo),
        ],
    )
    for command in commands:
        done = xrlhf_in(folder, *command)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return Stages(folder, sft, dpo)


def test_each_stage_learns(stages: Stages) -> None:
    """DPO begins at ln 2: policy and reference are the merged model both."""
    of_sft, of_dpo = stages.losses(stages.folder / "sft"), stages.losses(stages.folder / "copy")
    assert (len(of_sft), len(of_dpo)) == (SFT_STEPS, DPO_STEPS)
    assert of_sft[-1] < of_sft[0] - 0.1
    assert of_dpo[0] == pytest.approx(0.693147, abs=1e-5)
    assert of_dpo[-1] < of_dpo[0] - 1e-3


def test_the_merged_model_is_base_plus_adapter(stages: Stages) -> None:
    """W + (alpha / r) B A where there are adapters, and every other weight as it was."""
    base, merged = (load_file(stages.folder / name / "model.safetensors") for name in ("base", "merged"))
    adapter = load_file(stages.folder / "adapter" / "adapter_model.safetensors")
    assert base.keys() == merged.keys()
    changed = 0
    for name, weight in base.items():
        factors = [adapter.get(f"base_model.model.{name[: -len('.weight')]}.lora_{x}.weight") for x in "BA"]
        if factors[0] is not None and factors[1] is not None:
            product = LORA["lora_alpha"] / LORA["r"] * factors[0] @ factors[1]  # type: ignore[operator]
            assert product.abs().max() > 1e-2
            torch.testing.assert_close(merged[name], weight + product, rtol=0, atol=1e-5)
            changed += 1
        else:
            assert torch.equal(merged[name], weight), name
    assert changed == 14, "seven linear layers in each of two"


@torch.no_grad()
def test_merged_and_adapter_give_the_same_logits(stages: Stages) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stages.folder / "merged")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    merged = AutoModelForCausalLM.from_pretrained(stages.folder / "merged").eval()
    adapted = AutoPeftModelForCausalLM.from_pretrained(stages.folder / "adapter").eval()
    untrained = AutoModelForCausalLM.from_pretrained(stages.folder / "base").eval()
    wanted = adapted(**ids).logits
    torch.testing.assert_close(merged(**ids).logits, wanted, rtol=1e-5, atol=1e-5)
    assert (untrained(**ids).logits - wanted).abs().max() > 0.01


def test_tokenizer_and_template_go_from_stage_to_stage(stages: Stages) -> None:
    assert AutoTokenizer.from_pretrained(stages.folder / "base").chat_template is None
    wanted = AutoTokenizer.from_pretrained(stages.folder / "adapter")
    assert wanted.chat_template == CHATML
    talk = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "In a box."}]
    for name in ("merged", "policy"):
        found = AutoTokenizer.from_pretrained(stages.folder / name)
        assert found.chat_template == wanted.chat_template
        assert found.apply_chat_template(talk) == wanted.apply_chat_template(talk)
        ends = json.loads((stages.folder / name / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
        assert found.convert_tokens_to_ids("<|im_end|>") in (ends if isinstance(ends, list) else [ends])


@torch.no_grad()
def test_the_policy_answers_as_it_does_in_transformers(
    stages: Stages, xrlhf: Callable[..., CompletedProcess[str]]
) -> None:
    said = xrlhf("chat", stages.folder / "policy", "--prompt", QUESTION, "--greedy", "--max-new-tokens", "12")
    assert said.returncode == 0, said.stderr
    model = AutoModelForCausalLM.from_pretrained(stages.folder / "policy").eval()
    tokenizer = AutoTokenizer.from_pretrained(stages.folder / "policy")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert len(written) > 1
    assert said.stdout.strip() == tokenizer.decode(written, skip_special_tokens=True).strip()


def test_the_best_of_several_answers(stages: Stages, xrlhf: Callable[..., CompletedProcess[str]]) -> None:
    options = ["--prompt", QUESTION, "--seed", "1", "--max-new-tokens", "8", "--best-of", "3", "--scores"]
    said = xrlhf("chat", stages.folder / "policy", "--reward", stages.folder / "reward", *options)
    assert said.returncode == 0, said.stderr
    shown = [line for line in said.stderr.splitlines() if "  answer " in line]
    scores = [float(line.split()[0]) for line in shown]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]
    assert shown[0].partition(": ")[2] == " ".join(said.stdout.split())


@pytest.mark.parametrize("stage", ["sft", "copy", "cached"])
def test_resumed_equals_unbroken(
    stage: str,
    stages: Stages,
    xrlhf: Callable[..., CompletedProcess[str]],
    stopped_at: Callable[..., Path],
    assert_same_end: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    """Adapters with dropout; a copied and a cached reference, which are of the weights before the first step."""
    recipe, middle, last = (SFT, 6, SFT_STEPS) if stage == "sft" else (DPO, 3, DPO_STEPS)
    options = stages.sft if stage == "sft" else [*stages.dpo, f"model.reference={stage}"]
    unbroken = stages.folder / stage
    if stage == "cached":
        done = xrlhf("train", recipe, "--work-dir", unbroken, "--cfg-options", *options)
        assert done.returncode == 0, done.stderr
    run = stopped_at(unbroken, middle, tmp_path / "run")
    # Nothing is found there: the process that goes on runs the reference anew, before it reads the checkpoint.
    elsewhere = {"XRLHF_CACHE": str(tmp_path / "cache")}
    resumed = xrlhf("train", recipe, "--work-dir", run, "--resume", "--cfg-options", *options, environment=elsewhere)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_end(unbroken / f"iter_{last}.pth", run / f"iter_{last}.pth")
    assert stages.losses(run) == stages.losses(unbroken)[middle:]
    if stage == "cached":
        assert "computing the reference's log-probabilities of" in resumed.stdout
