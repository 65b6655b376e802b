from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, tiny_backbone
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from xrlhf.errors import ModelError
from xrlhf.models.loading import (
    backbone_from_config,
    backbone_from_pretrained,
    check_vocabulary,
    disable_dropout,
    fit_embeddings,
    score_head,
    torch_dtype,
)
from xrlhf.models.tokenizer import prepare_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def causal_lm(folder: Path, dtype: torch.dtype = torch.float32, **config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **{**SIZES, **config})).to(dtype)
    model.save_pretrained(folder)
    return model


def classifier(folder: Path, num_labels: int = 1) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", num_labels=num_labels, **SIZES)
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    return model


# ---------------------------------------------------------------------------------------- from a directory


def test_a_language_model_gets_a_zero_head(tmp_path: Path) -> None:
    language_model = causal_lm(tmp_path)
    model = backbone_from_pretrained(str(tmp_path))
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert model.config.num_labels == 1
    name, head = score_head(model)
    assert (name, head.weight.shape, head.weight.any().item()) == ("score", (1, 32), False)
    for key, weight in language_model.model.state_dict().items():
        torch.testing.assert_close(model.model.state_dict()[key], weight, rtol=0, atol=0)


def test_a_normal_head_has_the_usual_spread_and_follows_the_seed(tmp_path: Path) -> None:
    """N(0, 1 / (hidden + 1)): with 1024 inputs the sample deviation is within 10 % of 1025 ** -0.5 (4 sigma)."""
    causal_lm(tmp_path, hidden_size=1024, intermediate_size=8)
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(score_head(backbone_from_pretrained(str(tmp_path), head_init="normal"))[1].weight)
    assert heads[0].std().item() == pytest.approx(1025**-0.5, rel=0.1)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("head_init", ["zero", "normal"])
def test_a_trained_head_is_kept(tmp_path: Path, head_init: str) -> None:
    saved = classifier(tmp_path)
    model = backbone_from_pretrained(str(tmp_path), head_init=head_init, require_head=True)
    torch.testing.assert_close(score_head(model)[1].weight, saved.score.weight, rtol=0, atol=0)


def test_a_head_can_be_required(tmp_path: Path) -> None:
    causal_lm(tmp_path)
    with pytest.raises(ModelError, match="holds no score head: it is a language model, not a reward model"):
        backbone_from_pretrained(str(tmp_path), require_head=True)


def test_a_head_of_several_labels_is_refused(tmp_path: Path) -> None:
    classifier(tmp_path, num_labels=3)
    with pytest.raises(ModelError, match="has a score head that does not give one score: a reward model has num_label"):
        backbone_from_pretrained(str(tmp_path))


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    causal_lm(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights of Llama.*, such as 'model\.layers\.0\.mlp\.up_proj"):
        backbone_from_pretrained(str(tmp_path))


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    causal_lm(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "intermediate_size": 40}))
    with pytest.raises(ModelError, match=r"has 3 weights of another shape than its config\.json says"):
        backbone_from_pretrained(str(tmp_path))


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    causal_lm(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match="no model could be loaded from") as caught:
        backbone_from_pretrained(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"it holds no config\.json"):
        backbone_from_pretrained(str(tmp_path))


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model at '.*/nowhere': there is no such directory"):
        backbone_from_pretrained(str(tmp_path / "nowhere"))


def test_a_checkpoint_is_no_model_directory(tmp_path: Path) -> None:
    (tmp_path / "iter_5.pth").write_bytes(b"")
    with pytest.raises(ModelError, match=r"iter_5\.pth is a file; .* convert it with 'xrlhf convert pth_to_hf' first"):
        backbone_from_pretrained(str(tmp_path / "iter_5.pth"))


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    causal_lm(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert backbone_from_pretrained("~/model").config.hidden_size == 32


@pytest.mark.parametrize("bad", ["ones", "Zero", ""])
def test_an_unknown_head_init_is_refused_even_where_a_head_is_found(tmp_path: Path, bad: str) -> None:
    classifier(tmp_path)
    with pytest.raises(ModelError, match=f"head_init must be 'zero' or 'normal', got '{bad}'"):
        backbone_from_pretrained(str(tmp_path), head_init=bad)


def test_an_architecture_without_a_score_head_is_refused(tmp_path: Path) -> None:
    """Cohere has a language model, but transformers has no sequence classification for it."""
    config = AutoConfig.for_model("cohere", **SIZES, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no model could be loaded from .*AutoModelForSequenceClassification"):
        backbone_from_pretrained(str(tmp_path))


# --------------------------------------------------------------------------------------------------- dtype


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_dtype_names(name: str) -> None:
    assert torch_dtype(name) is getattr(torch, name)
    assert torch_dtype(getattr(torch, name)) is getattr(torch, name)


@pytest.mark.parametrize("name", ["fp32", "auto", "int8", ""])
def test_other_dtype_names_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"dtype must be 'float32', 'bfloat16' or 'float16', got '{name}'"):
        torch_dtype(name)


def test_a_bfloat16_checkpoint_is_held_in_float32(tmp_path: Path) -> None:
    saved = causal_lm(tmp_path, torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    model = backbone_from_pretrained(str(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.model.embed_tokens.weight, saved.model.embed_tokens.weight.float())


def test_a_bfloat16_model_has_a_float32_head(tmp_path: Path) -> None:
    causal_lm(tmp_path)
    model = backbone_from_pretrained(str(tmp_path), dtype="bfloat16")
    assert model.model.embed_tokens.weight.dtype is torch.bfloat16
    assert score_head(model)[1].weight.dtype is torch.float32


# ------------------------------------------------------------------------------------------- from a config


def test_from_config() -> None:
    torch.manual_seed(0)
    model = backbone_from_config("llama", **SIZES, rope_theta=5e5)
    assert model.config.num_labels == 1
    assert model.config.rope_parameters["rope_theta"] == 5e5
    assert not score_head(model)[1].weight.any()
    assert score_head(backbone_from_config("llama", head_init="normal", **SIZES))[1].weight.all()


def test_older_and_other_names_of_fields_are_known() -> None:
    model = backbone_from_config("gpt2", hidden_size=32, n_layer=1, n_head=2, vocab_size=64, bos_token_id=1)
    assert (model.config.n_embd, model.config.num_hidden_layers) == (32, 1)
    scaling = {"rope_type": "linear", "factor": 2.0}
    assert backbone_from_config("llama", **SIZES, rope_scaling=scaling).config.rope_parameters["factor"] == 2.0


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("lama", {}, "no 'lama' model could be made from its config: .*lama"),
        ("cohere", {}, "no 'cohere' model could be made from its config: .*AutoModelForSequenceClassification"),
        ("llama", {"hiden_size": 3}, "a 'llama' config has no field 'hiden_size'; did you mean 'hidden_size'"),
        ("llama", {"zzz": 3}, "a 'llama' config has no field 'zzz'$"),
        ("llama", {"hidden_size": "big"}, "no 'llama' model could be made from its config: .*hidden_size"),
        ("llama", {"hidden_size": 33}, "no 'llama' model could be made from its config: .*33"),
        ("llama", {"num_labels": 2}, "a reward model gives one score: leave num_labels out"),
        ("llama", {"dtype": "half"}, "dtype must be"),
        ("llama", {"head_init": "ones"}, "head_init must be"),
    ],
)
def test_a_config_that_is_wrong_is_one_clear_line(model_type: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        backbone_from_config(model_type, **{**SIZES, **fields})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_one_label_may_be_said() -> None:
    assert backbone_from_config("llama", **SIZES, num_labels=1).config.num_labels == 1


# -------------------------------------------------------------------------------------------------- heads


def test_a_model_without_a_linear_head_of_one_output_is_refused(tmp_path: Path) -> None:
    language_model = causal_lm(tmp_path)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no linear score head named score or classifier"):
        score_head(language_model)
    with pytest.raises(ModelError, match="has no linear score head"):
        score_head(classifier(tmp_path, num_labels=2))


# ------------------------------------------------------------------------------------------------ dropout


def test_dropout_is_switched_off_and_the_config_stays(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_backbone("gpt2").train()
    ids = torch.arange(5, 25)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    with caplog.at_level(logging.INFO, logger="xrlhf"):
        disable_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert model.config.resid_pdrop == 0.1
    assert "dropout is off in GPT2ForSequenceClassification: Dropout.p" in caplog.text


def test_dropout_kept_as_a_number_is_switched_off() -> None:
    """OPT calls the function with a number of its module, Llama hands one to its attention."""
    for model in (tiny_backbone("opt", dropout=0.5, layerdrop=0.3), tiny_backbone("llama", attention_dropout=0.4)):
        disable_dropout(model.train())
        ids = torch.arange(5, 25)[None]
        assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_model_without_dropout_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="xrlhf"):
        disable_dropout(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))
    assert caplog.text == ""


# ---------------------------------------------------------------------------------------------- embeddings


def test_new_tokens_get_the_mean_row(caplog: pytest.LogCaptureFixture) -> None:
    """260 rows for 260 ids; a pad token and a reward token come behind them."""
    model = tiny_backbone(vocab_size=260)
    old = model.get_input_embeddings().weight.detach().clone()
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="<|reward|>", pad_token="[PAD]")
    with caplog.at_level(logging.INFO, logger="xrlhf"):
        fit_embeddings(model, tokenizer)
    new = model.get_input_embeddings().weight.detach()
    assert new.shape == (262, 32)
    assert model.config.vocab_size == 262
    torch.testing.assert_close(new[:260], old, rtol=0, atol=0)
    torch.testing.assert_close(new[260:], old.mean(dim=0).expand(2, -1))
    assert "from 260 to 262 rows for [PAD], <|reward|>" in caplog.text


def test_new_tokens_that_fit_change_no_row() -> None:
    """Many models have spare rows."""
    model = tiny_backbone(vocab_size=262)
    old = model.get_input_embeddings().weight.detach().clone()
    fit_embeddings(model, prepare_tokenizer(byte_tokenizer(), ending="<|reward|>", pad_token="[PAD]"))
    assert torch.equal(model.get_input_embeddings().weight, old)


def test_special_ids_come_from_the_tokenizer() -> None:
    model = tiny_backbone(bos_token_id=7, eos_token_id=8, pad_token_id=9)
    fit_embeddings(model, prepare_tokenizer(byte_tokenizer()))
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 2)
    # The byte tokenizer has no BOS, so the model's own stays.
    assert model.config.bos_token_id == 7


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(ModelError, match="ids up to 259 but the model embeds only 256 tokens: use the tokenizer that"):
        fit_embeddings(tiny_backbone(vocab_size=256), prepare_tokenizer(byte_tokenizer()))


def test_new_tokens_do_not_hide_a_tokenizer_that_is_too_large() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="<|reward|>", pad_token="[PAD]")
    with pytest.raises(ModelError, match="ids up to 259 but the model embeds only 259 tokens"):
        fit_embeddings(tiny_backbone(vocab_size=259), tokenizer)


def test_a_grown_model_accepts_its_tokenizer_again() -> None:
    model = tiny_backbone(vocab_size=260)
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="<|reward|>")
    fit_embeddings(model, tokenizer)
    del tokenizer.xrlhf_new_tokens
    check_vocabulary(model, tokenizer)
    with pytest.raises(ModelError, match="ids up to 260"):
        check_vocabulary(tiny_backbone(vocab_size=260), tokenizer)
