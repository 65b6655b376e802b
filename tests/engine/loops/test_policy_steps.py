"""Steps of a policy: the loss is divided by the tokens of the whole step, however the step is cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy import answers, num_targets, run_of, tiny_policy, train, weights_of

from xrlhf.data.loader import EvalLoader
from xrlhf.data.mismatch import mismatched_batches, mismatched_groups
from xrlhf.data.packing import pack
from xrlhf.devices import CpuDevice
from xrlhf.engine.loops import LossValLoop
from xrlhf.evaluation.divergence import divergence_on, divergence_on_set
from xrlhf.evaluation.set_loss import SetLoss
from xrlhf.losses.policy import DPOLoss, KTOLoss, LanguageModelLoss

LOSSES: dict[str, Callable[[], nn.Module]] = {
    "sft": LanguageModelLoss,
    "dpo": lambda: DPOLoss(beta=0.5),
    "kto": lambda: KTOLoss(beta=0.5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_in_one_piece_equals_a_step_in_many(name: str, tmp_path: Path) -> None:
    runs = {}
    for budget in (16, 64, 10_000):
        model = tiny_policy(LOSSES[name]())
        run = run_of(model, answers(), tmp_path / str(budget), max_steps=4, token_budget=budget)
        runs[budget] = (train(run), weights_of(model.hf_model))
    logs, weights = runs[10_000]
    for budget in (16, 64):
        for mine, other in zip(runs[budget][0], logs, strict=True):
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
            assert mine.get("kl", 0.0) == pytest.approx(other.get("kl", 0.0), rel=1e-4, abs=1e-6)
        for mine_w, other_w in zip(runs[budget][1], weights, strict=True):
            torch.testing.assert_close(mine_w, other_w, rtol=1e-5, atol=2e-5)


def test_the_loss_of_sft_is_a_mean_over_tokens(tmp_path: Path) -> None:
    data = answers(8)
    model = tiny_policy(LanguageModelLoss())
    with torch.no_grad():
        losses = model(pack(data.groups)).group_losses
    expected = losses.sum().item() / sum(map(num_targets, data.groups))
    (first,) = train(run_of(model, data, tmp_path, max_steps=1, shuffle=False))
    assert first["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_reference_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    model = tiny_policy(DPOLoss())
    assert model.reference is not None
    before = weights_of(model.reference)
    run = run_of(model, answers(), tmp_path, max_steps=3)
    logs = train(run)
    assert logs[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(model.reference), before, strict=True))
    assert not any("reference" in name for name in model.checkpoint_names())
    moved = zip(weights_of(model.hf_model), before, strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)


@pytest.mark.parametrize("name", LOSSES)
def test_validation_equals_the_loss_of_the_whole_set(name: str) -> None:
    data = answers(9)
    model = tiny_policy(LOSSES[name]()).eval()
    if model.reference is not None:
        with torch.no_grad():
            for parameter in model.reference.parameters():
                parameter.mul_(1.1)
    loader = EvalLoader(data, token_budget=20)  # type: ignore[arg-type]
    divergence = divergence_on_set(loader, model, CpuDevice())
    assert (divergence is None) == (name != "kto")
    whole = model(replace(pack(data.groups), divergence=divergence))
    called: list[tuple[str, dict[str, float]]] = []
    runner = SimpleNamespace(
        strategy=SimpleNamespace(
            module=model,
            model=model,
            device=CpuDevice(),
            gather_objects=lambda value: [value],
            sum_over_ranks=lambda values: values,
        ),
        call_hook=lambda name, **values: called.append((name, values.get("metrics", {}))),
    )
    assert len(loader) > 3
    loop = object.__new__(LossValLoop)
    loop._runner, loop.dataloader = runner, loader
    found = loop.run()
    assert found["loss"] == pytest.approx((whole.loss / model.units(pack(data.groups))).item(), rel=1e-5)
    for metric, value in whole.metrics.items():
        if not metric.startswith("num_"):
            assert found[metric] == pytest.approx((value / whole.metrics[f"num_{metric}"]).item(), rel=1e-4, abs=1e-6)
    assert [name for name, _ in called] == ["before_val", "before_val_epoch", "after_val_epoch", "after_val"]
    assert called[2][1] == found


def log_prob_alone(model: Any, prompt: np.ndarray, answer: np.ndarray, counted: np.ndarray) -> float:
    """log p of the counted tokens of an answer, by the plain model on one conversation."""
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    logits = model.model(ids[None], use_cache=False).last_hidden_state[0] @ model.lm_head.weight.T
    model.set_attn_implementation(own)
    logps = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    return float(logps[len(prompt) - 1 :][torch.from_numpy(counted)].sum())


@pytest.mark.parametrize("lora", [None, {"r": 2, "lora_alpha": 8, "lora_dropout": 0.5}])
@torch.no_grad()
def test_the_divergence_is_the_mean_over_mismatched_answers_run_alone(lora: Any) -> None:
    """Answers of group i + 1 behind the prompt of group i, in the plain model, one by one. Dropout is off in it."""
    data = answers(7)
    model = tiny_policy(KTOLoss(), lora=lora).train()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("norm" not in name):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    batches = mismatched_batches(data.groups, max_length=64, token_budget=20, rank=0, world_size=1)
    assert len(batches) > 2
    found = divergence_on(batches, model, CpuDevice())
    assert model.training
    model.eval()
    ratios = []
    for group in mismatched_groups(data.groups, max_length=64):
        begin = len(group.prompt_ids)
        for ids in group.response_ids:
            counted = group.is_target[begin : begin + len(ids)]
            begin += len(ids)
            policy = log_prob_alone(model.hf_model, group.prompt_ids, ids, counted)
            if model.reference is not None:
                reference = log_prob_alone(model.reference, group.prompt_ids, ids, counted)
            else:
                with model.backbone.disable_adapter():  # type: ignore[operator]
                    reference = log_prob_alone(model.hf_model, group.prompt_ids, ids, counted)
            ratios.append(policy - reference)
    mean = sum(ratios) / len(ratios)
    assert abs(mean) > 0.1
    assert float(found) == pytest.approx(max(mean, 0.0), rel=1e-4, abs=1e-5)


def test_no_gradient_reaches_the_divergence_and_the_first_step_has_none(tmp_path: Path) -> None:
    """Before the first update policy and reference are one, so it is 0: the loss is 1/2 for every answer."""
    logs = train(run_of(tiny_policy(KTOLoss(beta=0.5)), answers(), tmp_path, max_steps=4))
    assert logs[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert logs[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert all(log["kl"] >= 0 for log in logs)
    assert any(log["kl"] > 0.01 for log in logs)


def test_without_the_estimate_nothing_is_run_or_logged(tmp_path: Path) -> None:
    run = run_of(tiny_policy(KTOLoss(estimate_kl=False)), answers(), tmp_path, max_steps=1)
    assert run.loop.dataloader.load(0).mismatched == ()
    assert "kl" not in train(run)[0]


def test_sums_of_processes_are_added() -> None:
    whole = SetLoss.of_all(
        [
            {"loss": 4.0, "num_units": 2.0, "num_groups": 1.0, "acc": 1.0, "num_acc": 1.0},
            {"loss": 2.0, "num_units": 4.0, "num_groups": 3.0, "acc": 0.0, "num_acc": 3.0},
        ]
    )
    assert whole.compute() == {"loss": 1.0, "acc": 0.25}
