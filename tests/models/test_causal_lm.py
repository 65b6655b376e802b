"""Language models, from a directory, from a config, and with an adapter."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, byte_tokenizer, tiny_backbone, tiny_causal_lm
from torch import Tensor
from transformers import PreTrainedModel

from xrlhf.errors import ModelError
from xrlhf.models.causal_lm import causal_lm_from_config, causal_lm_from_pretrained, causal_lm_with_adapter
from xrlhf.models.loading import fit_embeddings
from xrlhf.models.quantised import is_quantised
from xrlhf.models.tokenizer import prepare_tokenizer
from xrlhf.registry import MODELS

IDS = torch.arange(5, 25)[None]


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_causal_lm().save_pretrained(folder)
    return folder


def train_adapter(base: Path, folder: Path, seed: int = 0, **options: Any) -> Tensor:
    """Saves an adapter with random weights as peft does, and returns the logits of the model under it."""
    torch.manual_seed(seed)
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": "all-linear", **options})
    model = get_peft_model(causal_lm_from_pretrained(str(base)), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return logits(model.eval())


# ---------------------------------------------------------------------------------------- from a directory


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "gpt_neox", "opt", "internlm2", "mixtral"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_gives_the_same_logits(model_type: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_causal_lm(model_type, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    again = causal_lm_from_pretrained(str(tmp_path))
    assert type(again) is type(model)
    assert not again.training
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


def test_the_type_of_the_weights(saved: Path) -> None:
    assert {p.dtype for p in causal_lm_from_pretrained(str(saved)).parameters()} == {torch.float32}
    assert {p.dtype for p in causal_lm_from_pretrained(str(saved), dtype="bfloat16").parameters()} == {torch.bfloat16}
    with pytest.raises(ModelError, match="dtype must be"):
        causal_lm_from_pretrained(str(saved), dtype="float64")


def test_both_are_registered() -> None:
    assert MODELS.get("causal_lm_from_pretrained") is causal_lm_from_pretrained
    assert MODELS.get("causal_lm_from_config") is causal_lm_from_config


@pytest.mark.parametrize("tied", [False, True])
def test_a_reward_model_is_refused(tied: bool, tmp_path: Path) -> None:
    """Also with tied embeddings, where no weight of a language model would be missing."""
    tiny_backbone("qwen2", tie_word_embeddings=tied).save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        causal_lm_from_pretrained(str(tmp_path))
    assert str(caught.value) == (
        f"{str(tmp_path)!r} is a reward model or another classifier (Qwen2ForSequenceClassification), not a language "
        "model"
    )


def test_a_reward_model_whose_config_does_not_say_so_is_refused(tmp_path: Path) -> None:
    tiny_backbone("qwen2", tie_word_embeddings=True).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": None}))
    with pytest.raises(ModelError, match=r"holds 'score\.weight': it is a reward model, not a language model"):
        causal_lm_from_pretrained(str(tmp_path))


def change_weights(folder: Path, remove: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[remove]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_layers_without_an_output_layer_are_refused(saved: Path) -> None:
    change_weights(saved, "lm_head.weight")
    with pytest.raises(ModelError, match=r"holds no 'lm_head\.weight', which gives the next token: it is no language"):
        causal_lm_from_pretrained(str(saved))


def test_missing_weights_are_refused(saved: Path) -> None:
    change_weights(saved, "model.layers.0.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"lacks 1 of the weights of LlamaForCausalLM, such as 'model\.layers\.0\.mlp"):
        causal_lm_from_pretrained(str(saved))


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    file = saved / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "intermediate_size": 40}))
    with pytest.raises(ModelError, match=r"has 6 weights of another shape than its config\.json says"):
        causal_lm_from_pretrained(str(saved))


def test_a_model_that_reads_ahead_is_refused(tmp_path: Path) -> None:
    """BERT reads in both directions unless its config says is_decoder=True."""
    with pytest.raises(ModelError, match=r"model_type=bert reads text in both directions, so it is no language model"):
        tiny_causal_lm("bert")
    model = tiny_causal_lm("bert", is_decoder=True)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(causal_lm_from_pretrained(str(tmp_path))), logits(model), rtol=0, atol=0)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "is_decoder": False}))
    with pytest.raises(ModelError, match="reads text in both directions"):
        causal_lm_from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/at/all", "no model at 'nowhere/at/all': there is no such directory"),
        ("empty", r"no model could be loaded from '.*empty': it holds no config\.json"),
        ("broken", "no language model could be loaded from '.*broken': "),
    ],
)
def test_what_cannot_be_loaded_is_one_line(name: str, message: str, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    saved.rename(tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"cut off")
    path = name if "/" in name else str(tmp_path / name)
    with pytest.raises(ModelError, match=message) as caught:
        causal_lm_from_pretrained(path)
    assert "\n" not in str(caught.value)


def test_an_encoder_decoder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    with pytest.raises(ModelError, match="no language model could be loaded from") as caught:
        causal_lm_from_pretrained(str(tmp_path))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- from a config


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name != "bert"])
def test_every_family_gives_logits(model_type: str) -> None:
    model = tiny_causal_lm(model_type)
    assert not model.training
    assert logits(model).shape == (1, 20, 320)


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("lama", {}, "no 'lama' model could be made from its config: .*lama"),
        ("t5", {}, "no 't5' language model could be made from its config: .*AutoModelForCausalLM"),
        ("llama", {"hiden_size": 3}, "a 'llama' config has no field 'hiden_size'; did you mean 'hidden_size'"),
        ("llama", {"hidden_size": 33}, "no 'llama' (language )?model could be made from its config: .*33"),
        ("llama", {"dtype": "half"}, "dtype must be"),
    ],
)
def test_a_config_that_is_wrong_is_one_clear_line(model_type: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        causal_lm_from_config(model_type, **fields)
    assert "\n" not in str(caught.value)


def test_new_tokens_get_the_mean_row_in_the_output_layer_too() -> None:
    model = tiny_causal_lm(vocab_size=260)
    before = model.lm_head.weight.detach().clone()
    fit_embeddings(model, prepare_tokenizer(byte_tokenizer(), pad_token="[PAD]"))
    assert model.lm_head.weight.shape == (261, 32)
    torch.testing.assert_close(model.lm_head.weight[:260], before, rtol=0, atol=0)
    torch.testing.assert_close(model.lm_head.weight[260], before.mean(dim=0))


# ------------------------------------------------------------------------------------------------ adapters


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [7]},
        {"task_type": None},
    ],
    ids=["all-linear", "dora", "embeddings", "output layer", "one token", "no task"],
)
def test_an_adapter_alone_is_put_on_the_base_it_names(options: dict[str, Any], saved: Path, tmp_path: Path) -> None:
    wanted = train_adapter(saved, tmp_path / "adapter", **options)
    assert not torch.allclose(wanted, logits(causal_lm_from_pretrained(str(saved))), atol=1e-2)
    merged = causal_lm_from_pretrained(str(tmp_path / "adapter"))
    assert not isinstance(merged, PeftModel)
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-4)


def test_an_adapter_on_a_named_base(saved: Path, tmp_path: Path) -> None:
    """A copy of the base elsewhere does as well, in the type that is asked for."""
    wanted = train_adapter(saved, tmp_path / "adapter")
    causal_lm_from_pretrained(str(saved)).save_pretrained(tmp_path / "moved" / "model")
    model = causal_lm_with_adapter(str(tmp_path / "moved" / "model"), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)
    half = causal_lm_with_adapter(str(saved), str(tmp_path / "adapter"), dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_an_adapter_for_another_base_is_refused(saved: Path, tmp_path: Path) -> None:
    train_adapter(saved, tmp_path / "adapter")
    tiny_causal_lm(hidden_size=64).save_pretrained(tmp_path / "wide")
    with pytest.raises(ModelError, match=r"is for another base than .*wide") as caught:
        causal_lm_with_adapter(str(tmp_path / "wide"), str(tmp_path / "adapter"))
    assert "\n" not in str(caught.value)


def test_a_model_is_no_adapter(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no adapter: there is no adapter_config\.json"):
        causal_lm_with_adapter(str(saved), str(saved))


def test_the_adapter_of_a_reward_model_is_refused(saved: Path, tmp_path: Path) -> None:
    config = LoraConfig(task_type="SEQ_CLS", r=4)
    model = get_peft_model(tiny_backbone(), config)
    model.peft_config["default"].base_model_name_or_path = str(saved)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="is that of a reward model"):
        causal_lm_from_pretrained(str(tmp_path / "adapter"))


def test_an_adapter_whose_base_is_gone(saved: Path, tmp_path: Path) -> None:
    train_adapter(saved, tmp_path / "adapter")
    saved.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is an adapter whose base cannot be loaded: no model at"):
        causal_lm_from_pretrained(str(tmp_path / "adapter"))


def test_an_adapter_on_a_quantised_base_is_refused(saved: Path, tmp_path: Path) -> None:
    train_adapter(saved, tmp_path / "adapter")
    with pytest.raises(ModelError, match="is an adapter, which cannot be put on a quantised base"):
        causal_lm_from_pretrained(str(tmp_path / "adapter"), quantization={"load_in_4bit": True})


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize(("model_type", "output"), [("llama", "lm_head"), ("internlm2", "output")])
def test_the_output_layer_is_not_quantised(model_type: str, output: str, tmp_path: Path) -> None:
    tiny_causal_lm(model_type, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    model = causal_lm_from_pretrained(str(tmp_path), quantization={"load_in_4bit": True})
    assert is_quantised(model)
    assert any(parameter.dtype is torch.uint8 for parameter in model.parameters())
    assert getattr(model, output).weight.dtype is torch.float32
