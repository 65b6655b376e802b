"""Training in float16: gradients under a loss scale, and steps that are skipped where it was too large."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW
from toy import SGD_OF_1, ToyModel, pairs, run_of, tiny_reward_model, train, weights_of

from xrlhf.devices import CpuDevice, HpuDevice
from xrlhf.engine.checkpoint import load_checkpoint
from xrlhf.engine.optim import build_optim_wrapper
from xrlhf.errors import DeviceError, ModelError, TrainingError
from xrlhf.structures import PackedBatch

ADAMW = {"optimizer": {"type": AdamW, "lr": 1e-2, "weight_decay": 0.1}, "max_grad_norm": 1.0}


class HalfModel(ToyModel):
    """One weight, whose gradients pass through float16 on their way; those of some groups are always infinite."""

    precision = torch.float16

    def __init__(self, too_large: set[int] | None = None, slope: float = 2.0**-4) -> None:
        super().__init__()
        self.too_large, self.slope = too_large or set(), slope

    def group_losses(self, batch: PackedBatch) -> Tensor:
        losses = _ThroughHalf.apply(self.weight.expand(len(batch.group_ids))) * self.slope
        if not self.too_large:
            return losses
        # The square root's slope at 0 is infinite; its value is 0.
        bad = torch.tensor([int(group) in self.too_large for group in batch.group_ids])
        return losses + torch.where(bad, torch.sqrt(self.weight - self.weight.detach()), torch.zeros(1))


class _ThroughHalf(torch.autograd.Function):
    """The value as it is, its gradient rounded to float16."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].half().float()


def scale_of(run: SimpleNamespace) -> float:
    return run.strategy.optim_wrapper.scaler.get_scale()


def test_a_reward_model_in_float16(tmp_path: Path) -> None:
    """As in float32, within the rounding of float16; no step is skipped."""
    runs = []
    for precision in ("float16", "float32"):
        model = tiny_reward_model(precision=precision)
        run = run_of(model, pairs(), tmp_path / precision, max_steps=4, optim_wrapper=ADAMW)
        if precision == "float16":
            run.strategy.optim_wrapper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        runs.append((train(run), model))
    (half, half_model), (exact, exact_model) = runs
    for one, other in zip(half, exact, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=5e-3, abs=5e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.05)
        assert one["num_skipped"] == 0.0
        assert "num_skipped" not in other
    for a, b in zip(weights_of(half_model), weights_of(exact_model), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.02)


def test_gradients_that_float16_cannot_hold_are_scaled(tmp_path: Path) -> None:
    """2**-27 rounds to 0 in float16, whose smallest number is 2**-24; under a scale of 2**16 it does not."""
    model = HalfModel(slope=2.0**-24)
    (log,) = train(run_of(model, pairs(8), tmp_path, max_steps=1))
    assert log["grad_norm"] == pytest.approx(2.0**-24)
    assert model.weight.item() == pytest.approx(-(2.0**-24))
    # The control: the same without a scale.
    assert torch.tensor([2.0**-24 / 8]).half().item() == 0.0


def test_steps_are_skipped_until_the_scale_fits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 groups share a step, so each has an eighth of the slope: 2**16 * 2**5 / 8 = 2**18 must fall to 2**15.

    Float16 ends at 65504, just under 2**16: at 2**18, 2**17 and 2**16 the steps are skipped.
    """
    monkeypatch.setattr(logging.getLogger("xrlhf"), "propagate", True)
    caplog.set_level(logging.INFO)
    model = HalfModel(slope=2.0**5)
    run = run_of(model, pairs(8), tmp_path, max_steps=5, shuffle=False)
    logs = train(run)
    assert [log["num_skipped"] for log in logs] == [1.0, 2.0, 3.0, 3.0, 3.0]
    assert scale_of(run) == 2.0**13
    # Two of five steps of 2**5 each were taken.
    assert model.weight.item() == -(2.0**6)
    assert logs[3]["grad_norm"] == 32.0
    assert "step 3 is skipped: gradients too large for float16, so the loss scale is lowered (3 skipped so far)" in (
        caplog.text
    )
    assert "step 4 is skipped" not in caplog.text


def test_skipping_without_end_is_a_failure(tmp_path: Path) -> None:
    model = HalfModel(set(range(8)))
    run = run_of(model, pairs(8), tmp_path, max_steps=100)
    with pytest.raises(
        TrainingError,
        match=r"^step 25: the gradients of 25 steps in a row were not finite in float16, whatever the loss scale: set",
    ):
        train(run)
    assert model.weight.item() == 0.0


def test_a_loss_that_is_not_finite_stops_as_ever(tmp_path: Path) -> None:
    """No loss scale helps where the forward pass overflows."""

    class Broken(HalfModel):
        def group_losses(self, batch: PackedBatch) -> Tensor:
            return super().group_losses(batch) + torch.inf

    with pytest.raises(TrainingError, match=r"^step 1: loss inf, "):
        train(run_of(Broken(), pairs(8), tmp_path, max_steps=1))


def test_the_scale_goes_on_after_a_resume(tmp_path: Path) -> None:
    """Saved after three skipped steps, the scale and its count of good steps are those of the run that went on."""
    run = run_of(HalfModel(slope=2.0**5), pairs(8), tmp_path / "a", max_steps=4, shuffle=False)
    train(run)
    run.strategy.param_schedulers = []
    path = tmp_path / "a" / "iter_4.pth"
    run.strategy.save_checkpoint(str(path), extra_ckpt={"meta": {"step": 4}})
    assert load_checkpoint(path)["optimizer"]["loss_scaler"]["scale"] == 2.0**13
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []

    model = HalfModel(slope=2.0**5)
    again = run_of(model, pairs(8), tmp_path / "b", max_steps=5, shuffle=False)
    again.strategy.param_schedulers = []
    again.strategy.resume(str(path))
    (log,) = train(again, start=4)
    assert (scale_of(again), log["num_skipped"], model.weight.item()) == (2.0**13, 0.0, -(2.0**6))
    assert again.strategy.optim_wrapper.scaler.state_dict()["_growth_tracker"] == 2


def test_another_precision_after_a_resume(tmp_path: Path) -> None:
    """A run may go on in float16 from a checkpoint of float32, and the other way round."""
    one = run_of(HalfModel(), pairs(8), tmp_path / "half", max_steps=1)
    other = run_of(ToyModel(), pairs(8), tmp_path / "full", max_steps=1)
    for name, run in (("half", one), ("full", other)):
        run.strategy.param_schedulers = []
        run.strategy.save_checkpoint(str(tmp_path / name / "iter_1.pth"), extra_ckpt={"meta": {"step": 1}})
    one.strategy.resume(str(tmp_path / "full" / "iter_1.pth"))
    other.strategy.resume(str(tmp_path / "half" / "iter_1.pth"))
    assert scale_of(one) == 2.0**16


def test_float16_weights_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"^weights held in float16 cannot be trained, since their updates would round to nothing: "
    ):
        build_optim_wrapper(ToyModel().half(), SGD_OF_1)


def test_a_device_without_float16_refuses_it() -> None:
    with pytest.raises(DeviceError, match=r"^device 'hpu' cannot compute with precision='float16': choose 'float32'"):
        build_optim_wrapper(HalfModel(), SGD_OF_1, HpuDevice())
    assert build_optim_wrapper(HalfModel(), SGD_OF_1, CpuDevice()).scaler is not None
    assert build_optim_wrapper(ToyModel(), SGD_OF_1, CpuDevice()).scaler is None
