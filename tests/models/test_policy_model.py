"""The policy's options: which reference it takes, what it refuses, what of it is saved."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_groups, tiny_backbone, tiny_causal_lm

from xrlhf.data.packing import pack
from xrlhf.errors import ConfigError, ModelError
from xrlhf.losses import RankingLoss
from xrlhf.losses.policy import DPOLoss, KTOLoss, LanguageModelLoss, ORPOLoss
from xrlhf.models import PolicyModel, RewardModel, causal_lm_from_config
from xrlhf.structures import PackedBatch


def batch(**options: Any) -> PackedBatch:
    """Two groups whose responses are learnt."""
    groups = []
    for group in random_groups([(4, (3, 2)), (3, (2, 4))]):
        mask = np.ones(group.num_tokens, dtype=bool)
        mask[: len(group.prompt_ids)] = False
        groups.append(replace(group, is_target=mask, **options))
    return pack(groups)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"loss": DPOLoss()}, "copy"),
        ({"loss": DPOLoss(), "lora": {"r": 2}}, "adapter_off"),
        ({"loss": DPOLoss(), "lora": {"r": 2}, "reference": "copy"}, "copy"),
        ({"loss": DPOLoss(), "reference": "cached"}, "cached"),
        ({"loss": ORPOLoss()}, None),
        ({"loss": LanguageModelLoss(), "reference": None}, None),
        ({}, None),
    ],
)
def test_the_reference(options: dict[str, Any], kind: str | None) -> None:
    model = PolicyModel(tiny_causal_lm(), **options)
    assert model.reference_kind == kind
    assert (model.reference is not None) == (kind == "copy")
    assert bool(model.initial_digest) == (kind == "cached")


def test_another_model_as_the_reference() -> None:
    another = {"type": causal_lm_from_config, "model_type": "llama", **small(320)}
    model = PolicyModel(tiny_causal_lm(), loss=DPOLoss(), reference=another)
    assert model.reference_kind == "model"
    assert model.reference is not None
    assert not any(parameter.requires_grad for parameter in model.reference.parameters())
    assert not torch.equal(model.reference_log_probs(batch()), model.token_log_probs(batch()))


def test_a_reference_on_the_host_says_the_same_and_is_no_part_of_the_model() -> None:
    beside = PolicyModel(tiny_causal_lm(), loss=DPOLoss())
    apart = PolicyModel(tiny_causal_lm(), loss=DPOLoss(), reference_device="cpu")
    assert torch.equal(apart.reference_log_probs(batch()), beside.reference_log_probs(batch()))
    assert apart(batch()).loss == beside(batch()).loss
    assert not any(name.startswith("reference") for name in apart.state_dict())
    assert [*apart.transformers_models()] == [apart.hf_model]
    assert apart.checkpoint_names() == beside.checkpoint_names()
    apart.train()
    assert apart.reference is not None
    assert not apart.reference.training


def small(vocab_size: int) -> dict[str, int]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss": KTOLoss(), "reference": "cached"},
            "KTOLoss compares answers to the wrong prompts with the reference, which differ from step to step and",
        ),
        ({"loss": DPOLoss(), "reference": "frozen"}, "reference must be 'auto', 'adapter_off', 'copy', 'cached' or"),
        ({"loss": DPOLoss(), "reference": None}, "DPOLoss compares with a reference"),
        ({"loss": DPOLoss(), "reference_device": "cuda"}, "reference_device must be 'cpu', or None for the policy's"),
        (
            {"loss": DPOLoss(), "reference_device": "cpu", "reference": "cached"},
            "reference_device='cpu' places a frozen copy or another model, and reference='cached' has no weights of it",
        ),
        (
            {"loss": LanguageModelLoss(), "reference_device": "cpu"},
            "reference_device='cpu' places a frozen copy or another model, and there is no reference: leave it out, or",
        ),
        ({"loss": DPOLoss(), "reference": "adapter_off"}, "needs lora"),
        ({"loss": ORPOLoss(), "reference": "copy"}, "ORPOLoss reads no reference"),
        ({"loss": RankingLoss()}, "RankingLoss is a loss on scores, which trains a RewardModel"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicyModel(tiny_causal_lm(), **options)


def test_a_loss_of_policies_in_a_reward_model() -> None:
    with pytest.raises(ConfigError, match="DPOLoss trains a PolicyModel"):
        RewardModel(tiny_backbone(), loss=DPOLoss())


def test_a_reference_of_another_vocabulary() -> None:
    another = {"type": causal_lm_from_config, "model_type": "llama", **small(64)}
    with pytest.raises(ModelError, match="the reference embeds 64 tokens and the policy 320"):
        PolicyModel(tiny_causal_lm(), loss=DPOLoss(), reference=another)


def test_packed_rows_of_a_model_that_cannot_be_packed() -> None:
    with pytest.raises(ModelError, match="BloomForCausalLM cannot be trained on packed groups"):
        PolicyModel(tiny_causal_lm("bloom"), loss=LanguageModelLoss(), layout="packed")


def test_packed_rows_of_a_reference_that_cannot_be_packed() -> None:
    another = {"type": causal_lm_from_config, "model_type": "bloom", "vocab_size": 320, "hidden_size": 16, "n_head": 2}
    with pytest.raises(ModelError, match="BloomForCausalLM cannot be trained on packed groups"):
        PolicyModel(tiny_causal_lm(), loss=DPOLoss(), reference=another, layout="packed")
    assert PolicyModel(tiny_causal_lm(), loss=DPOLoss(), reference=another).reference_layout == "padded"


def test_data_that_says_nothing_of_targets() -> None:
    model = PolicyModel(tiny_causal_lm(), loss=LanguageModelLoss())
    with pytest.raises(ModelError, match="does not say which tokens are to be learnt"):
        model(pack(random_groups()))


def test_a_cached_reference_comes_with_the_data() -> None:
    model = PolicyModel(tiny_causal_lm(), loss=DPOLoss(), reference="cached")
    with pytest.raises(ModelError, match="comes without its reference's log-probabilities"):
        model(batch())
    known = model(batch(reference_logps=np.array([-1.0, -2.0], dtype=np.float32)))
    policy = model.logps(batch(), model.token_log_probs(batch())).logps
    margin = (policy[:, 0] - policy[:, 1]) - 1.0
    expected = -torch.nn.functional.logsigmoid(0.1 * margin)
    torch.testing.assert_close(known.group_losses, expected.detach(), rtol=1e-5, atol=1e-6)


def test_a_copy_of_the_model_computes_with_its_own_output_layer() -> None:
    """The layer asks for chosen tokens through its class, so a deep copy is whole."""
    model = PolicyModel(tiny_causal_lm(), loss=LanguageModelLoss())
    before = model.token_log_probs(batch())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.hf_model.get_output_embeddings().weight.zero_()
    torch.testing.assert_close(model.token_log_probs(batch()), before)
    assert copied.token_log_probs(batch()).detach().tolist() == pytest.approx([-np.log(320)] * 11, rel=1e-5)


def test_dropout_of_the_adapters_leaves_the_reference_alone() -> None:
    model = PolicyModel(tiny_causal_lm(), loss=DPOLoss(), lora={"r": 2, "lora_dropout": 0.5}).train()
    first, second = model.reference_log_probs(batch()), model.reference_log_probs(batch())
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert model.training


def test_writing_uses_the_models_own_attention() -> None:
    model = PolicyModel(tiny_causal_lm(), loss=LanguageModelLoss()).train()
    packed = model.hf_model.config._attn_implementation
    with model.generating() as writing:
        assert writing.config._attn_implementation != packed
        assert not writing.training
        ids = torch.tensor([[5, 6, 7]])
        written = writing.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        assert written.shape[1] > 3
    assert model.hf_model.config._attn_implementation == packed
    assert model.training


def test_flops_count_output_layer_and_reference() -> None:
    """Against a policy without reference: a third more in the backbone, and two products more in the output layer."""
    without = PolicyModel(tiny_causal_lm(), loss=ORPOLoss()).count_flops()(batch())
    against = PolicyModel(tiny_causal_lm(), loss=DPOLoss()).count_flops()(batch())
    assert against / without == pytest.approx(4 / 3, rel=1e-6)
