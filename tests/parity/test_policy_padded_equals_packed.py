"""Policies on padded rows give what every conversation gives by itself, and what packed rows give.

Everything is float32, with weights large enough for attention to show in the log-probabilities. Some tokens of the
shared prompts are targets: they count for every response of their group, and are read in one row.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import compare_gradients, gradients_of, logps_alone, random_groups, tiny_causal_lm, with_targets
from torch import nn

from xrlhf.data.packing import pack
from xrlhf.losses.policy import DPOLoss, LanguageModelLoss, ORPOLoss
from xrlhf.models.causal_lm import causal_lm_from_config
from xrlhf.models.policy_model import PolicyModel
from xrlhf.structures import PackedBatch, TokenizedGroup

SHAPES = ((7, (4, 6)), (3, (2, 5, 2)), (12, (3, 3, 8, 2)), (0, (2, 5)), (1, (4, 4)), (0, (9,)))
PREFERENCES = SHAPES[:3]

NEVER_PACKED = ["bloom", "falcon", "gptj", "gpt_neo", "mpt"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in [*NEVER_PACKED, "llama", "opt", "gpt2", "mixtral"]},
    "falcon with alibi": ("falcon", {"alibi": True}),
    "gemma2 with windows and soft caps": ("gemma2", {"sliding_window": 5, "final_logit_softcapping": 1.5}),
    "mistral with a window": ("mistral", {"sliding_window": 5}),
}


def batch_of(shapes: tuple[tuple[int, tuple[int, ...]], ...] = SHAPES, **options: Any) -> PackedBatch:
    return pack(with_targets(random_groups(shapes)), **options)


@contextmanager
def shapes_of_calls(model: PolicyModel) -> Iterator[tuple[list[tuple[int, int]], list[int]]]:
    """The (rows, length) of every pass of the backbone, and the tokens of every call of the output layer."""
    rows: list[tuple[int, int]] = []
    targets: list[int] = []
    backbone = getattr(model.hf_model, model.hf_model.base_model_prefix)
    output: nn.Module = model.hf_model.get_output_embeddings()
    handles = [
        backbone.register_forward_pre_hook(
            lambda _, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
        ),
        output.register_forward_pre_hook(lambda _, args: targets.append(len(args[0]))),
    ]
    yield rows, targets
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_and_gradients(name: str, static: bool) -> None:
    """Groups of one to four responses, in several passes, against transformers' own forward pass."""
    family, config = FAMILIES[name]
    groups = with_targets(random_groups(SHAPES))
    backbone = tiny_causal_lm(family, **config)
    plain = copy.deepcopy(backbone).eval()
    model = PolicyModel(backbone, loss=LanguageModelLoss(), layout="padded", static_shapes=static).train()
    assert model.layout == "padded"
    batch = pack(groups)
    with shapes_of_calls(model) as (rows, targets):
        found = model.logps(batch, model.token_log_probs(batch))
    assert len(rows) > 1
    assert len(targets) == 1
    wanted, counts = logps_alone(plain, groups, batch.response_mask.shape[1])
    torch.testing.assert_close(found.logps, wanted, rtol=1e-5, atol=2e-5)
    assert torch.equal(found.num_tokens, counts)
    model(batch).loss.backward()
    (-wanted.sum()).backward()
    compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


OPTIONS: dict[str, dict[str, Any]] = {
    "copy": {"loss": DPOLoss(beta=0.3), "reference": "copy"},
    "adapter_off": {"loss": DPOLoss(beta=0.3), "lora": {"r": 2, "init_lora_weights": False}},
    "another model": {
        "loss": DPOLoss(beta=0.3),
        "reference": {
            "type": causal_lm_from_config,
            **{"model_type": "llama", "vocab_size": 320, "hidden_size": 16, "intermediate_size": 16},
            **{"num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.2},
        },
    },
    "cached": {"loss": DPOLoss(beta=0.3), "reference": "cached"},
    "no reference": {"loss": ORPOLoss()},
    "several turns": {"loss": LanguageModelLoss()},
}


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_family_that_can_be_packed(name: str, checkpointing: bool, static: bool) -> None:
    """Token log-probabilities, those of the reference, the loss of every group, its metrics and all gradients."""
    options = OPTIONS[name]
    groups: list[TokenizedGroup] = with_targets(random_groups(PREFERENCES))
    if name == "cached":
        generator = np.random.default_rng(2)
        groups = [
            replace(g, reference_logps=generator.normal(-20, 3, len(g.response_ids)).astype(np.float32)) for g in groups
        ]
    batch = pack(groups, weights=[1, 0, 1])
    backbone = tiny_causal_lm()
    models = []
    for layout in ({"layout": "packed"}, {"layout": "padded", "static_shapes": static}):
        torch.manual_seed(1)
        model = PolicyModel(copy.deepcopy(backbone), **options, **layout, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        models.append(model)
    packed, padded = models
    assert (packed.layout, padded.layout) == ("packed", "padded")
    assert padded.reference_layout == "padded"
    for one, other in zip(packed(batch, mode="outputs"), padded(batch, mode="outputs"), strict=True):
        if one is None:
            assert other is None
        else:
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
    outputs = [model(batch) for model in models]
    torch.testing.assert_close(outputs[1].group_losses, outputs[0].group_losses, rtol=1e-5, atol=1e-5)
    assert outputs[0].metrics.keys() == outputs[1].metrics.keys()
    for metric, value in outputs[0].metrics.items():
        torch.testing.assert_close(outputs[1].metrics[metric], value, rtol=1e-5, atol=2e-5)
    for output in outputs:
        output.loss.backward()
    compare_gradients(gradients_of(padded), gradients_of(packed))


@pytest.mark.parametrize("reference", ["copy", "another"])
@pytest.mark.parametrize("static", [False, True])
def test_dpo_of_a_family_that_cannot_be_packed(reference: str, static: bool) -> None:
    """Bloom against itself, or against a Llama, which packs all the same where shapes are free."""
    another = OPTIONS["another model"]["reference"]
    backbone = tiny_causal_lm("bloom")
    frozen = copy.deepcopy(backbone).eval()
    model = PolicyModel(
        backbone,
        loss=DPOLoss(beta=0.3),
        reference="copy" if reference == "copy" else another,
        static_shapes=static,
    ).train()
    assert model.layout == "padded"
    assert model.reference_layout == ("padded" if static or reference == "copy" else "packed")
    assert model.reference is not None
    if reference == "another":
        frozen = copy.deepcopy(model.reference)
        frozen.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.hf_model.parameters():
            parameter.mul_(1.05)
    plain = copy.deepcopy(model.hf_model)
    groups = with_targets(random_groups(PREFERENCES))
    batch = pack(groups)
    output = model(batch)
    output.loss.backward()
    policy, _ = logps_alone(plain, groups, 4)
    known, _ = logps_alone(frozen, groups, 4)
    known = known.detach()
    found = model.logps(batch, model.reference_log_probs(batch)).logps
    torch.testing.assert_close(found, known, rtol=1e-5, atol=2e-5)
    terms = []
    for g, group in enumerate(groups):
        margins = policy[g] - known[g]
        k = len(group.response_ids)
        pairs = [-nn.functional.logsigmoid(0.3 * (margins[i] - margins[j])) for i in range(k) for j in range(i + 1, k)]
        terms.append(torch.stack(pairs).mean())
    wanted = torch.stack(terms)
    torch.testing.assert_close(output.group_losses, wanted.detach(), rtol=1e-5, atol=1e-5)
    wanted.sum().backward()
    compare_gradients(gradients_of(model.hf_model), gradients_of(plain))


@pytest.mark.parametrize("family", NEVER_PACKED)
def test_what_cannot_be_packed_is_padded_by_itself(family: str, caplog: pytest.LogCaptureFixture) -> None:
    """And it is said once, with a copy beside it too."""
    model = PolicyModel(tiny_causal_lm(family), loss=DPOLoss())
    assert model.layout == model.reference_layout == "padded"
    said = [record.getMessage() for record in caplog.records if "padded rows" in record.getMessage()]
    assert len(said) == 1
    with model.generating() as writing:
        ids = torch.tensor([[5, 6, 7]])
        written = writing.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, do_sample=False
        )
    assert written.shape == (1, 6)


def test_a_prompt_is_read_in_one_row() -> None:
    """Targets in a prompt of eight responses: its states are read once, so its log-probabilities are given once."""
    (group,) = random_groups([(6, (2,) * 8)])
    group = replace(group, is_target=np.array([False, *[True] * 21]))
    batch = pack([group])
    model = PolicyModel(tiny_causal_lm("bloom"), loss=LanguageModelLoss())
    with shapes_of_calls(model) as (_, targets):
        assert model.token_log_probs(batch).shape == (5 + 16,)
    assert targets == [21]
    assert model.units(batch) == 8 * 5 + 16


def test_one_pass_where_all_processes_must_make_equally_many() -> None:
    model = PolicyModel(tiny_causal_lm("bloom"), loss=LanguageModelLoss()).eval()
    batch = batch_of()
    several = model.token_log_probs(batch)
    model.single_forward = True
    with shapes_of_calls(model) as (rows, _):
        torch.testing.assert_close(model.token_log_probs(batch), several, rtol=1e-5, atol=1e-5)
    assert rows == [(14, 20)]


def test_static_shapes_are_few() -> None:
    """Rows, their lengths and the tokens of the output layer come from short lists."""
    model = PolicyModel(tiny_causal_lm("bloom"), loss=LanguageModelLoss(), static_shapes=True).eval()
    numbers = set()
    with torch.no_grad(), shapes_of_calls(model) as (rows, targets):
        for seed in range(40):
            sizes = torch.randint(1, 90, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
            groups = random_groups([(sizes[0], sizes[1:5]), (sizes[5], sizes[6:])], seed=seed)
            batch = pack(with_targets(groups, seed))
            assert batch.target_index is not None
            numbers.add(len(batch.target_index))
            assert model.token_log_probs(batch).shape == batch.target_index.shape
    assert {length for _, length in rows} <= {64, 96, 128, 192}
    assert len(set(rows)) <= 16 < len(rows)
    assert set(targets) <= {64, 96, 128, 192, 256, 384, 512}
    assert len(set(targets)) < 8 < len(numbers)


@pytest.mark.parametrize("static", [False, True])
def test_a_batch_of_filler_reaches_every_weight_with_zero(static: bool) -> None:
    model = PolicyModel(tiny_causal_lm("bloom"), loss=LanguageModelLoss(), static_shapes=static)
    model(batch_of(((3, (2, 2)),), weights=[0.0])).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("static", [False, True])
def test_rows_without_a_target(static: bool) -> None:
    """A slice of which nothing is read: an answer that nobody learns, too long to share a pass."""
    groups = random_groups([(4, (3, 30)), (2, (3,))])
    masks = [np.zeros(group.num_tokens, dtype=bool) for group in groups]
    masks[0][4:7] = masks[1][3:] = True
    groups = [replace(group, is_target=mask) for group, mask in zip(groups, masks, strict=True)]
    batch = pack(groups)
    models = [
        PolicyModel(
            tiny_causal_lm(), loss=LanguageModelLoss(), layout=layout, static_shapes=static and layout != "packed"
        )
        for layout in ("packed", "padded")
    ]
    for model in models:
        model(batch).loss.backward()
    torch.testing.assert_close(models[1].token_log_probs(batch), models[0].token_log_probs(batch), rtol=1e-5, atol=1e-5)
    compare_gradients(gradients_of(models[1]), gradients_of(models[0]))
