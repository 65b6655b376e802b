"""The package's InternLM2 against the reference of ``internlm2_reference``."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from internlm2_reference import published_names, reference_score, reference_states
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, compare_gradients, conversations_of, gradients_of, random_groups, tiny_backbone
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from xrlhf.data.packing import pack
from xrlhf.errors import ModelError
from xrlhf.losses import RankingLoss
from xrlhf.models.internlm2 import (
    InternLM2Config,
    InternLM2ForCausalLM,
    InternLM2ForRewardModel,
    register_internlm2,
)
from xrlhf.models.loading import backbone_from_config, backbone_from_pretrained, embedding_weight
from xrlhf.models.reward_model import RewardModel

DYNAMIC = {"type": "dynamic", "factor": 2.0}
LINEAR = {"type": "linear", "factor": 3.0}
SCALINGS = (None, LINEAR, DYNAMIC)


def reference_scores(model: InternLM2ForRewardModel, rows: list[torch.Tensor]) -> torch.Tensor:
    config = model.config.to_dict()
    return torch.tensor([reference_score(model.state_dict(), config, row.tolist()) for row in rows])


def padded(rows: list[torch.Tensor], side: str = "right") -> dict[str, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
    ones = [torch.ones_like(row) for row in rows]
    return {
        "input_ids": ids,
        "attention_mask": torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side),
    }


# ------------------------------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1), (8, 2)], ids=str)
def test_packed_rows_score_as_the_reference(heads: tuple[int, int], bias: bool) -> None:
    backbone = tiny_backbone("internlm2", num_attention_heads=heads[0], num_key_value_heads=heads[1], bias=bias)
    if bias:
        for name, parameter in backbone.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    groups = random_groups()
    model = RewardModel(backbone, layout="packed")
    with torch.no_grad():
        scores = model.score(pack(groups))
    for row, group in zip(scores, groups, strict=True):
        wanted = reference_scores(backbone, conversations_of(group))
        torch.testing.assert_close(row[: len(wanted)], wanted, atol=1e-5, rtol=1e-5)
    assert scores.std() > 0.1, "all scores are alike, so the comparison shows nothing"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_padded_rows_score_as_the_reference(scaling: Any, side: str, attention: str) -> None:
    """Rows of 3 to 29 tokens where 16 are the limit; a row's length, not its neighbour's, decides its base.

    With padding on the left a row's positions begin at the padding, which changes nothing but dynamic scaling: its
    length is counted from there.
    """
    model = tiny_backbone("internlm2", rope_scaling=scaling, max_position_embeddings=16, rope_theta=100.0)
    model.set_attn_implementation(attention)
    rows = [conversations_of(group)[0] for group in random_groups([(2, [1]), (10, [5]), (10, [7]), (20, [9])])]
    if side == "left" and scaling is DYNAMIC:
        rows = rows[-1:]
    with torch.no_grad():
        together = model(**padded(rows, side)).logits[:, 0]
        alone = torch.stack([model(row[None]).logits[0, 0] for row in rows])
    wanted = reference_scores(model, rows)
    torch.testing.assert_close(together, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, wanted, atol=1e-5, rtol=1e-5)


def test_scaling_shows_beyond_the_limit_only() -> None:
    row = conversations_of(random_groups([(20, [9])])[0])[0]
    scores = {}
    for scaling, limit in itertools.product(SCALINGS, (16, 29)):
        model = tiny_backbone("internlm2", rope_scaling=scaling, max_position_embeddings=limit, rope_theta=100.0)
        scores[str(scaling), limit] = float(model(row[None]).logits[0, 0].detach())
    assert scores[str(None), 16] == scores[str(None), 29] == scores[str(DYNAMIC), 29]
    assert scores[str(LINEAR), 16] == scores[str(LINEAR), 29]
    assert abs(scores[str(DYNAMIC), 16] - scores[str(None), 16]) > 1e-3
    assert abs(scores[str(LINEAR), 16] - scores[str(None), 16]) > 1e-3


def test_a_long_row_leaves_no_trace() -> None:
    model = tiny_backbone("internlm2", rope_scaling=DYNAMIC, max_position_embeddings=16)
    long, short = (conversations_of(group)[0] for group in random_groups([(20, [9]), (5, [4])]))
    before = model(short[None]).logits
    model(long[None])
    assert torch.equal(model(short[None]).logits, before)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_gradients_are_those_of_padded_rows(checkpointing: bool) -> None:
    gradients = []
    for layout in ("packed", "padded"):
        model = RewardModel(
            tiny_backbone("internlm2"), loss=RankingLoss(), layout=layout, gradient_checkpointing=checkpointing
        ).train()
        model(pack(random_groups())).loss.backward()
        gradients.append(gradients_of(model))
    compare_gradients(*gradients)


# ------------------------------------------------------------------------------------------------- adapters


def test_adapters_go_on_the_fused_matrices() -> None:
    model = RewardModel(
        tiny_backbone("internlm2"),
        loss=RankingLoss(),
        lora={"r": 2, "target_modules": ["wqkv", "wo", "w1", "w2", "w3"]},
    )
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"wqkv", "wo", "w1", "w2", "w3"}
    every = RewardModel(tiny_backbone("internlm2"), lora={"r": 2})
    assert {name for name, _ in every.named_parameters()} == {name for name, _ in model.named_parameters()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora" not in name} == {
        "backbone.base_model.model.v_head.modules_to_save.default.weight"
    }


# ---------------------------------------------------------------------------------------- language model


def language_model(**config: Any) -> InternLM2ForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "bias": False,
        "reward_token_id": 90,
    }
    return InternLM2ForCausalLM(InternLM2Config(**{**sizes, **config})).eval()


def test_its_logits_are_the_head_on_the_states_of_the_reference() -> None:
    model = language_model()
    ids = torch.randint(5, 96, (1, 12))
    states = reference_states(model.state_dict(), model.config.to_dict(), ids[0].tolist())
    wanted = (states @ model.state_dict()["output.weight"].double().T).float()
    output = model(ids, labels=ids)
    torch.testing.assert_close(output.logits[0], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(ids, logits_to_keep=1).logits, output.logits[:, -1:])
    # Token t + 1 is what position t is asked for.
    wanted_loss = torch.nn.functional.cross_entropy(wanted[:-1], ids[0, 1:])
    torch.testing.assert_close(output.loss, wanted_loss)


def test_generation_with_kept_keys_is_that_without() -> None:
    model = language_model()
    ids = torch.randint(5, 96, (2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(ids, use_cache=True, **options), model.generate(ids, use_cache=False, **options))


def test_it_has_the_names_of_the_published_checkpoints(tmp_path: Path) -> None:
    language_model(bias=True).save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == published_names(2, bias=True, head="output.weight")


def test_tied_embeddings() -> None:
    model = language_model(tie_word_embeddings=True)
    assert model.output.weight is model.model.tok_embeddings.weight


# -------------------------------------------------------------------------------- directories as published


def published(folder: Path, *, head: str = "output.weight", architecture: str = "InternLM2ForCausalLM") -> Path:
    """A directory as the hub has it: the keys of its config.json, remote code that must not run, the weights' names."""
    folder.mkdir()
    config = {
        "architectures": [architecture],
        "attn_implementation": "flash_attention_2",
        "auto_map": {
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModel": "modeling_internlm2.InternLM2ForRewardModel",
            "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
        },
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "model_type": "internlm2",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "reward_token_id": 90,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.41.0",
        "use_cache": True,
        "vocab_size": 96,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("configuration_internlm2", "modeling_internlm2"):
        (folder / f"{name}.py").write_text("raise RuntimeError('remote code ran')\n", encoding="utf-8")
    generator = torch.Generator().manual_seed(1)
    sizes = {
        "tok_embeddings": (96, 32),
        "output": (96, 32),
        "v_head": (1, 32),
        "wqkv": (64, 32),
        "wo": (32, 32),
        "w1": (48, 32),
        "w3": (48, 32),
        "w2": (32, 48),
    }
    weights = {}
    for name in sorted(published_names(2, head=head)):
        part = name.split(".")[-2]
        size = sizes.get(part, (32,))
        weights[name] = torch.randn(size, generator=generator) * 0.2 + ("norm" in part)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("trust", [False, True])
def test_a_published_language_model_becomes_a_reward_model(trust: bool, tmp_path: Path) -> None:
    place = published(tmp_path / "sft")
    model = backbone_from_pretrained(str(place), trust_remote_code=trust)
    assert type(model) is InternLM2ForRewardModel
    assert model.config._attn_implementation == "sdpa"
    weights = load_file(place / "model.safetensors")
    assert set(model.state_dict()) == published_names(2)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, torch.zeros_like(weight) if name == "v_head.weight" else weights[name]), name


def test_a_published_reward_model_scores_as_the_reference(tmp_path: Path) -> None:
    place = published(tmp_path / "reward", head="v_head.weight", architecture="InternLM2ForRewardModel")
    model = backbone_from_pretrained(str(place), require_head=True).eval()
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    ids = torch.randint(5, 90, (1, 11))
    wanted = reference_score(load_file(place / "model.safetensors"), config, ids[0].tolist())
    assert float(model(ids).logits[0, 0].detach()) == pytest.approx(wanted, abs=1e-5)


def test_a_published_language_model_loads_as_one(tmp_path: Path) -> None:
    register_internlm2()
    model = AutoModelForCausalLM.from_pretrained(published(tmp_path / "sft"))
    assert type(model) is InternLM2ForCausalLM


def test_a_config_that_transformers_5_rewrote() -> None:
    rope = {"rope_theta": 5e5, "rope_type": "dynamic", "type": "dynamic", "factor": 2.0}
    config = InternLM2Config(rope_parameters=rope)
    assert (config.rope_theta, config.rope_scaling) == (5e5, {"type": "dynamic", "factor": 2.0})
    config = InternLM2Config(rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    assert (config.rope_theta, config.rope_scaling) == (5e5, None)


def test_a_config_keeps_the_published_keys(tmp_path: Path) -> None:
    InternLM2Config(rope_theta=1e6, rope_scaling=DYNAMIC, bias=False).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    wanted = {"rope_theta": 1e6, "rope_scaling": DYNAMIC, "bias": False, "reward_token_id": 92527}
    assert {name: written.get(name) for name in wanted} == wanted
    assert "rope_parameters" not in written


def test_grown_embeddings() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>"]})
    tokenizer.xrlhf_new_tokens = ["<|new|>"]
    model = RewardModel(tiny_backbone("internlm2", vocab_size=260), tokenizer=tokenizer)
    assert len(embedding_weight(model.hf_model)) == model.hf_model.config.vocab_size == 261


# ------------------------------------------------------------------------------------------------ bad input


def test_a_reward_model_without_its_head_is_refused(tmp_path: Path) -> None:
    place = published(tmp_path / "broken", architecture="InternLM2ForRewardModel")
    with pytest.raises(ModelError, match=r"says it is a InternLM2ForRewardModel, but its weights hold no v_head head"):
        backbone_from_pretrained(str(place))


def test_a_language_model_where_a_reward_model_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no v_head head: it is a language model, not a reward model"):
        backbone_from_pretrained(str(published(tmp_path / "sft")), require_head=True)


def test_the_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    place = published(tmp_path / "mixed")
    register_internlm2()
    llama = LlamaForCausalLM.config_class(
        **{"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        num_attention_heads=4,
    )
    LlamaForCausalLM(llama).save_pretrained(tmp_path / "llama")
    (place / "model.safetensors").write_bytes((tmp_path / "llama" / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"lacks \d+ of the weights of InternLM2ForRewardModel, such as 'model\."):
        backbone_from_pretrained(str(place))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 30}, "hidden_size 30 must be a multiple of num_attention_heads 4"),
        ({"num_key_value_heads": 3}, "a multiple of num_key_value_heads 3"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling of InternLM2 is .* got .*yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling of InternLM2 is .* got .*0.5"),
        ({"hiden_size": 32}, "a 'internlm2' config has no field 'hiden_size'; did you mean 'hidden_size'?"),
    ],
)
def test_a_config_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message.replace("?", r"\?")):
        backbone_from_config("internlm2", **{"num_attention_heads": 4, "hidden_size": 32, **fields})
