"""Log-probabilities of packed groups are those that every conversation has in transformers' own forward pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import compare_gradients, gradients_of, logps_alone, random_groups, tiny_causal_lm, with_targets

from xrlhf.data.packing import pack
from xrlhf.losses.policy import DPOLoss, LanguageModelLoss
from xrlhf.models.policy_model import PolicyModel

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ["llama", "qwen2", "qwen3", "phi3", "opt", "gpt2", "gpt_neox", "gemma", "mixtral"]},
    "mistral, a window": ("mistral", {"sliding_window": 6}),
    "gemma2, windows and soft caps": (
        "gemma2",
        {"sliding_window": 5, "attn_logit_softcapping": 0.7, "final_logit_softcapping": 1.5},
    ),
    "gemma3, windows": ("gemma3_text", {"sliding_window": 7}),
    "gpt_oss, windows and sinks": ("gpt_oss", {"sliding_window": 4}),
}


SHAPES = ((7, (4, 6)), (3, (2, 5, 2)), (12, (3, 3, 8, 2)), (0, (2, 5)), (1, (4, 4)), (0, (9,)))


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_and_gradients(name: str) -> None:
    family, config = FAMILIES[name]
    groups = with_targets(random_groups(SHAPES))
    backbone = tiny_causal_lm(family, **config)
    plain = copy.deepcopy(backbone).eval()
    model = PolicyModel(backbone, loss=LanguageModelLoss()).train()
    batch = pack(groups)
    found = model.logps(batch, model.token_log_probs(batch))
    wanted, counts = logps_alone(plain, groups, batch.response_mask.shape[1])
    torch.testing.assert_close(found.logps, wanted, rtol=1e-5, atol=2e-5)
    assert torch.equal(found.num_tokens, counts)
    model(batch).loss.backward()
    (-wanted.sum()).backward()
    compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


@pytest.mark.parametrize("name", ["llama", "gemma2, windows and soft caps"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_dpo(name: str, checkpointing: bool, lora: dict[str, Any] | None) -> None:
    """Against a frozen copy, or against the model without its adapters; both moved away from the start first."""
    family, config = FAMILIES[name]
    groups = with_targets(random_groups(SHAPES[:3]))
    backbone = tiny_causal_lm(family, **config)
    frozen = copy.deepcopy(backbone).eval()
    model = PolicyModel(backbone, loss=DPOLoss(beta=0.3), lora=lora, gradient_checkpointing=checkpointing).train()
    assert model.reference_kind == ("copy" if lora is None else "adapter_off")
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    batch = pack(groups)
    output = model(batch)
    reference, _ = logps_alone(frozen, groups, 4)
    policy = model.logps(batch, model.token_log_probs(batch)).logps
    found = model.logps(batch, model.reference_log_probs(batch)).logps
    torch.testing.assert_close(found, reference.detach(), rtol=1e-5, atol=2e-5)
    assert (policy - reference).abs().max() > 0.1
    for g, group in enumerate(groups):
        k = len(group.response_ids)
        terms = [
            -torch.nn.functional.logsigmoid(0.3 * ((policy[g, i] - policy[g, j]) - (reference[g, i] - reference[g, j])))
            for i in range(k)
            for j in range(i + 1, k)
        ]
        torch.testing.assert_close(output.group_losses[g], torch.stack(terms).mean().detach(), rtol=1e-5, atol=1e-5)
    output.loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.backbone.parameters())


def test_filler_counts_nothing() -> None:
    groups = with_targets(random_groups(SHAPES[:3]))
    model = PolicyModel(tiny_causal_lm(), loss=LanguageModelLoss())
    whole = model(pack(groups))
    without = model(pack(groups, weights=[1, 0, 1]))
    assert without.loss.item() == pytest.approx((whole.group_losses[0] + whole.group_losses[2]).item(), rel=1e-6)
    assert model.units(pack(groups, weights=[1, 0, 1])).item() == sum(
        len(g.response_ids) * int(g.is_target[: len(g.prompt_ids)].sum()) + int(g.is_target[len(g.prompt_ids) :].sum())
        for g in (groups[0], groups[2])
        if g.is_target is not None
    )
