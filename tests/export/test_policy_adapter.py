"""Adapters of policies, alone, merged, and split: every way gives the log-probabilities of training."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from tiny_models import CHATML, byte_tokenizer, random_groups, tiny_causal_lm
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from xrlhf.data.packing import pack
from xrlhf.errors import ModelError
from xrlhf.export import merge_into_base, save_adapter, save_policy, split_model
from xrlhf.export.directory import loading_call
from xrlhf.losses.policy import LanguageModelLoss
from xrlhf.models.causal_lm import causal_lm_from_pretrained, causal_lm_with_adapter
from xrlhf.models.policy_model import PolicyModel
from xrlhf.models.tokenizer import prepare_tokenizer, read_tokenizer
from xrlhf.structures import PackedBatch, TokenizedGroup

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "dora": {"r": 4, "use_dora": True},
    "output layer": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}
NEW = 260
"""The first token that the base has no row for."""


def save_base(folder: Path, model_type: str = "llama", **config: Any) -> Path:
    tiny_causal_lm(model_type, vocab_size=260, **config).save_pretrained(folder)
    byte_tokenizer(None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of 260 rows, with a tokenizer that has no chat template."""
    return save_base(tmp_path_factory.mktemp("policy_adapter") / "base")


def groups() -> list[TokenizedGroup]:
    """Random ids, of which all but a conversation's first are learnt."""
    made = []
    for group in random_groups(vocab_size=260):
        learnt = np.ones(group.num_tokens, dtype=bool)
        firsts = [0] if len(group.prompt_ids) else np.cumsum([0, *map(len, group.response_ids[:-1])])
        learnt[firsts] = False
        made.append(TokenizedGroup(group.prompt_ids, group.response_ids, is_target=learnt))
    return made


def batch() -> PackedBatch:
    return pack(groups())


def trained(base: Path, lora: dict[str, Any] | None, **backbone: Any) -> tuple[PolicyModel, Any]:
    """Three steps, under a chat template that the base does not have and an answer's end that is new to it."""
    torch.manual_seed(1)
    tokenizer = prepare_tokenizer(byte_tokenizer(CHATML.replace("<|im_end|>", "<|close|>")))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|close|>"]})
    tokenizer.xrlhf_new_tokens = ["<|close|>"]
    model = PolicyModel(
        causal_lm_from_pretrained(str(base), **backbone), tokenizer=tokenizer, loss=LanguageModelLoss(), lora=lora
    ).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(batch()).loss.div(100).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


@torch.no_grad()
def log_probs(model: PolicyModel) -> Tensor:
    return model.token_log_probs(batch())


def of_directory(folder: Path) -> Tensor:
    """What the exported model gives, on the data path of training."""
    return log_probs(PolicyModel(AutoModelForCausalLM.from_pretrained(folder)).eval())


def of_plain(model: nn.Module) -> Tensor:
    return log_probs(PolicyModel(model).eval())  # type: ignore[arg-type]


def same(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_gives_the_policy_of_training(kind: str, base: Path, tmp_path: Path) -> None:
    model, tokenizer = trained(base, KINDS[kind])
    wanted = log_probs(model)
    untrained = log_probs(PolicyModel(causal_lm_from_pretrained(str(base)), tokenizer=tokenizer).eval())
    assert (wanted - untrained).abs().max() > 0.1

    save_policy(model, tokenizer, tmp_path / "merged")
    same(of_directory(tmp_path / "merged"), wanted)
    save_adapter(model, tokenizer, tmp_path / "adapter")
    same(of_plain(causal_lm_from_pretrained(str(tmp_path / "adapter"))), wanted)
    merge_into_base(str(base), str(tmp_path / "adapter"), tmp_path / "again")
    same(of_directory(tmp_path / "again"), wanted)
    split_model(tmp_path / "again", tmp_path / "split", max_shard_size="50KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 1
    same(of_directory(tmp_path / "split"), wanted)
    same(log_probs(model), wanted)
    for name in ("merged", "again", "split"):
        assert loading_call(tmp_path / name).startswith("AutoModelForCausalLM.from_pretrained(")


def test_adapters_on_the_output_layer_are_refused(base: Path) -> None:
    with pytest.raises(ModelError, match="adapters on the output layer cannot be trained in a policy: leave it out of"):
        trained(base, {"r": 4, "target_modules": ["q_proj", "lm_head"]})


def test_peft_reads_the_adapter(base: Path, tmp_path: Path) -> None:
    model, tokenizer = trained(base, KINDS["lora"])
    save_adapter(model, tokenizer, tmp_path / "adapter")
    ids = torch.from_numpy(groups()[0].prompt_ids.astype(np.int64))[None]
    found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    with model.generating(), torch.no_grad():
        wanted = model.backbone(input_ids=ids, use_cache=False).logits
        same(found(input_ids=ids, use_cache=False).logits[..., :NEW], wanted[..., :NEW])


def test_tokenizer_and_template_of_the_adapter_travel_along(base: Path, tmp_path: Path) -> None:
    """The base has neither the template nor the token that closes a turn in it."""
    model, tokenizer = trained(base, KINDS["lora"])
    save_adapter(model, tokenizer, tmp_path / "adapter")
    merge_into_base(str(base), str(tmp_path / "adapter"), tmp_path / "out")
    read = read_tokenizer(str(tmp_path / "out"))
    assert read.chat_template == tokenizer.chat_template
    assert read.convert_tokens_to_ids("<|close|>") == NEW
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert ends == [tokenizer.eos_token_id, NEW]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    row = merged.get_input_embeddings().weight[NEW]
    same(row, model.hf_model.get_input_embeddings().weight[NEW])


def test_an_adapter_without_a_tokenizer_takes_that_of_the_base(base: Path, tmp_path: Path) -> None:
    model, tokenizer = trained(base, KINDS["lora"])
    save_adapter(model, tokenizer, tmp_path / "adapter")
    for file in (tmp_path / "adapter").glob("tokenizer*"):
        file.unlink()
    merge_into_base(str(base), str(tmp_path / "adapter"), tmp_path / "out")
    assert len(read_tokenizer(str(tmp_path / "out"))) == NEW
    same(of_directory(tmp_path / "out"), log_probs(model))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = trained(base, KINDS["lora"])
    out = tmp_path_factory.mktemp("policy_adapter") / "adapter"
    save_adapter(model, tokenizer, out)
    return out


def edited(adapter: Path, folder: Path, weights: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    """A copy of an adapter with another config and more weights."""
    folder.mkdir()
    for file in adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    if weights:
        held = load_file(adapter / "adapter_model.safetensors")
        save_file({**held, **weights}, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_without_a_task_is_a_policys(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = edited(adapter, tmp_path / "adapter", task_type=None)
    merge_into_base(str(base), str(other), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_a_score_head_makes_it_a_reward_models(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Some tools save the adapter of a reward model under the task of its base."""
    head = {"base_model.model.score.weight": torch.ones(1, 32)}
    other = edited(adapter, tmp_path / "adapter", head, modules_to_save=["score"])
    merge_into_base(str(base), str(other), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]


@pytest.mark.parametrize("task", ["SEQ_CLS", "FEATURE_EXTRACTION"])
def test_a_reward_models_adapter_without_its_head(task: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    other = edited(adapter, tmp_path / "adapter", task_type=task)
    with pytest.raises(ModelError, match="holds no score head: it is the adapter of a language model, or was saved"):
        merge_into_base(str(base), str(other), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_policys_adapter_for_another_base(adapter: Path, tmp_path: Path) -> None:
    other = save_base(tmp_path / "base", hidden_size=48)
    with pytest.raises(
        ModelError, match=r"adapter' is for another base than .*base' \(LlamaForCausalLM\): its"
    ) as error:
        merge_into_base(str(other), str(adapter), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'xrlhf[quantised]'"
)
def test_adapters_on_a_base_in_4_bits(tmp_path: Path) -> None:
    """Merged in one go it is what was trained; the adapter alone is put on the base in full precision."""
    base = save_base(tmp_path / "base", hidden_size=64, intermediate_size=128, initializer_range=0.05)
    model, tokenizer = trained(base, KINDS["lora"], quantization={"load_in_4bit": True})
    wanted = log_probs(model)
    save_policy(model, tokenizer, tmp_path / "merged")
    torch.testing.assert_close(of_directory(tmp_path / "merged"), wanted, rtol=1e-3, atol=1e-3)
    save_adapter(model, tokenizer, tmp_path / "adapter")
    merge_into_base(str(base), str(tmp_path / "adapter"), tmp_path / "again")
    same(of_directory(tmp_path / "again"), of_plain(causal_lm_from_pretrained(str(tmp_path / "adapter"))))
    assert 0 < (of_directory(tmp_path / "again") - wanted).abs().mean() < 0.1


def test_an_adapter_that_names_no_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    """It needs one only where none is given."""
    other = edited(adapter, tmp_path / "adapter", base_model_name_or_path=None)
    merge_into_base(str(base), str(adapter), tmp_path / "named")
    merge_into_base(str(base), str(other), tmp_path / "unnamed")
    same(of_directory(tmp_path / "unnamed"), of_directory(tmp_path / "named"))
    same(of_plain(causal_lm_with_adapter(str(base), str(other))), of_directory(tmp_path / "named"))
    with pytest.raises(
        ModelError, match=r"adapter' names no base model: write it there as base_model_name_or_path, or"
    ):
        causal_lm_from_pretrained(str(other))
