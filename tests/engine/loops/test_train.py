"""The training loop: one step is a set of groups, and nothing else decides its gradient."""

from __future__ import annotations

import math
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW
from toy import ToyDataset, ToyModel, pairs, run_of, tiny_reward_model, train, weights_of

from xrlhf.data.loader import StepLoader
from xrlhf.engine.loops import GroupTrainLoop
from xrlhf.engine.stopping import StopRequest
from xrlhf.errors import ConfigError, TrainingError
from xrlhf.structures import PackedBatch

ADAMW = {"optimizer": {"type": AdamW, "lr": 1e-2, "weight_decay": 0.1}, "max_grad_norm": 1.0}


# ---------------------------------------------------------------- how long a run is


def loop_of(dataset: ToyDataset, groups_per_step: int = 8, **options: Any) -> GroupTrainLoop:
    loader = StepLoader(dataset, groups_per_step=groups_per_step, token_budget=64, seed=0)  # type: ignore[arg-type]
    return GroupTrainLoop(None, loader, **options)


def test_the_length_in_steps_or_epochs() -> None:
    """24 groups, 10 a step: 2 epochs are 48 groups, 4.8 steps, so 5; 7 steps are 70 groups, 2.9 epochs, so 3."""
    by_epochs = loop_of(pairs(24), 10, max_epochs=2)
    assert (by_epochs.max_iters, by_epochs.max_epochs) == (5, 3)
    by_steps = loop_of(pairs(24), 10, max_steps=7)
    assert (by_steps.max_iters, by_steps.max_epochs) == (7, 3)
    assert loop_of(pairs(24), 8, max_epochs=0.5).max_iters == 2
    by_steps.resume_at(5)
    assert (by_steps.iter, by_steps.epoch) == (5, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "^train_cfg needs either max_epochs or max_steps$"),
        ({"max_epochs": 1, "max_steps": 1}, "^train_cfg needs either max_epochs or max_steps$"),
        ({"max_steps": 0}, "^the run has no step: max_epochs=None, max_steps=0$"),
        ({"max_epochs": 0.0}, "^the run has no step: max_epochs=0.0, max_steps=None$"),
        ({"max_steps": 1, "val_interval": 0}, "^val_interval must be at least 1 step, got 0$"),
    ],
)
def test_a_wrong_length(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loop_of(pairs(), **options)


# ---------------------------------------------------------------- what a step does


def test_the_loss_is_the_mean_over_the_groups_of_the_step(tmp_path: Path) -> None:
    """Groups 0 to 3 in one step, weight w, rate 1. Losses are w, 2w, 3w, 4w: their mean is 2.5 w, its gradient 2.5.

    So w goes 0, -2.5, -5, and the second step's loss is 2.5 * -2.5.
    """
    model = ToyModel()
    runner = run_of(model, pairs(4), tmp_path, max_steps=2, groups_per_step=4, token_budget=1, shuffle=False)
    first, second = train(runner)
    assert (first["loss"], first["grad_norm"]) == (0.0, 2.5)
    assert (second["loss"], second["grad_norm"]) == (-6.25, 2.5)
    assert model.weight.item() == -5.0
    assert first["num_samples"] == 4.0
    assert first["num_tokens"] == pairs(4).num_tokens().sum()
    assert first["tokens_per_second"] > 0
    assert first["groups_per_second"] / first["tokens_per_second"] == pytest.approx(4 / first["num_tokens"])
    assert first["memory"] > 10


def test_accuracy_and_margin_are_means_over_ranked_groups_only(tmp_path: Path) -> None:
    """Two of four groups are ranked: sums of 1 and 3 over them are means of 0.5 and 1.5; scores are over all four."""

    def metrics(batch: PackedBatch) -> dict[str, Tensor]:
        ranked = (batch.group_ids < 2) * batch.group_weights
        return {
            "acc": 0.5 * ranked.sum(),
            "margin": 1.5 * ranked.sum(),
            "num_ranked": ranked.sum(),
            "chosen_score_mean": 2.0 * batch.group_weights.sum(),
        }

    (logged,) = train(run_of(ToyModel(metrics), pairs(4), tmp_path, max_steps=1, groups_per_step=4, token_budget=1))
    assert (logged["acc"], logged["margin"], logged["chosen_score_mean"]) == (0.5, 1.5, 2.0)
    assert "num_ranked" not in logged


def test_a_metric_is_a_mean_over_what_its_count_counts(tmp_path: Path) -> None:
    """mse: a sum of 6 over two counted groups; tie_acc has none in this step and is left out; so is every count."""

    def metrics(batch: PackedBatch) -> dict[str, Tensor]:
        rated = (batch.group_ids < 2) * batch.group_weights
        nothing = torch.zeros(())
        return {"mse": 3.0 * rated.sum(), "num_mse": rated.sum(), "tie_acc": nothing, "num_tie_acc": nothing}

    (logged,) = train(run_of(ToyModel(metrics), pairs(4), tmp_path, max_steps=1, groups_per_step=4, token_budget=1))
    assert logged["mse"] == 3.0
    assert not {"tie_acc", "num_mse", "num_tie_acc"} & logged.keys()


def test_without_a_ranked_group_there_is_no_accuracy(tmp_path: Path) -> None:
    def metrics(batch: PackedBatch) -> dict[str, Tensor]:
        return dict.fromkeys(("acc", "margin", "num_ranked"), torch.zeros(()))

    (logged,) = train(run_of(ToyModel(metrics), pairs(4), tmp_path, max_steps=1, groups_per_step=4, token_budget=1))
    assert not {"acc", "margin"} & logged.keys()


@pytest.mark.parametrize("name", ["something_loss", "loss_of_the_critic"])
def test_a_metric_named_like_a_loss_leaves_the_gradients_alone(tmp_path: Path, name: str) -> None:
    """mmengine itself would add up everything that has "loss" in its name, and train on the sum."""
    plain, named = ToyModel(), ToyModel()
    named.metrics = lambda batch: {name: (named.weight * 1000).sum()}
    (one,) = train(run_of(plain, pairs(8), tmp_path / "a", max_steps=1))
    (other,) = train(run_of(named, pairs(8), tmp_path / "b", max_steps=1))
    assert torch.equal(plain.weight, named.weight)
    assert (one["loss"], one["grad_norm"]) == (other["loss"], other["grad_norm"])
    assert other[name] == 0.0


def test_the_hooks_are_called_around_every_step(tmp_path: Path) -> None:
    runner = run_of(ToyModel(), pairs(), tmp_path, max_steps=2)
    runner.val_loop = SimpleNamespace(run=lambda: runner.called.append("validation"))
    runner.loop.val_interval = 1
    assert runner.loop.run() is runner.model
    step = ["before_train_iter", "after_train_iter", "validation"]
    assert runner.called == ["before_train", "before_train_epoch", *step, *step, "after_train_epoch", "after_train"]
    assert runner.loop.iter == 2


@pytest.mark.parametrize(("interval", "steps"), [(None, [5]), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_when_it_validates(tmp_path: Path, interval: int | None, steps: list[int]) -> None:
    runner = run_of(ToyModel(), pairs(), tmp_path, max_steps=5)
    validated: list[int] = []

    def validate() -> None:
        runner.model.eval()
        validated.append(runner.loop.iter)

    runner.val_loop = SimpleNamespace(run=validate)
    runner.loop.val_interval = interval
    runner.loop.run()
    assert validated == steps
    assert runner.model.training


# ---------------------------------------------------------------- 1 x 8 equals 8 x 1


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, float]], list[Tensor]]:
    """Five steps with all groups of a step in one micro-batch."""
    model = tiny_reward_model()
    runner = run_of(
        model, pairs(), tmp_path_factory.mktemp("run"), max_steps=5, token_budget=10_000, optim_wrapper=ADAMW
    )
    assert len(runner.loop.dataloader.load(0).batches) == 1
    return train(runner), weights_of(model)


@pytest.mark.parametrize(("token_budget", "micro_batches"), [(1, 8), (50, None)])
def test_micro_batches_change_nothing(
    tmp_path: Path,
    reference: tuple[list[dict[str, float]], list[Tensor]],
    token_budget: int,
    micro_batches: int | None,
) -> None:
    """A budget of one token gives every group a micro-batch of its own."""
    model = tiny_reward_model()
    runner = run_of(model, pairs(), tmp_path, max_steps=5, token_budget=token_budget, optim_wrapper=ADAMW)
    number = len(runner.loop.dataloader.load(0).batches)
    assert number == micro_batches if micro_batches else number > 1
    logs = train(runner)
    for one, other in zip(reference[0], logs, strict=True):
        for name in ("loss", "grad_norm", "acc", "margin", "chosen_score_mean", "num_samples", "num_tokens"):
            assert other[name] == pytest.approx(one[name], rel=1e-6, abs=1e-6), name
    for a, b in zip(reference[1], weights_of(model), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-6)
    # Control: the steps did change the weights by far more than that.
    assert (
        max(float((a - b).abs().max()) for a, b in zip(weights_of(tiny_reward_model()), reference[1], strict=True))
        > 1e-3
    )


# ---------------------------------------------------------------- randomness belongs to the step


def test_a_step_draws_the_same_numbers_wherever_the_run_began(tmp_path: Path) -> None:
    """With dropout, steps 3 and 4 after a jump equal those of a run from the beginning, given the same weights."""
    whole, jumped = tiny_reward_model(lora_dropout=0.5), tiny_reward_model(lora_dropout=0.5)
    frozen = {"optimizer": {"type": AdamW, "lr": 0.0}}
    options = {"max_steps": 4, "optim_wrapper": frozen}
    from_start = train(run_of(whole, pairs(), tmp_path / "a", **options))
    torch.rand(7)
    from_two = train(run_of(jumped, pairs(), tmp_path / "b", **options), start=2)
    for one, other in zip(from_start[2:], from_two, strict=True):
        assert (one["loss"], one["grad_norm"]) == (other["loss"], other["grad_norm"])


def test_dropout_is_on_and_another_seed_draws_other_numbers(tmp_path: Path) -> None:
    """Controls for the test above. B starts at 0, which would hide the dropout before it: it is filled first."""

    def losses(seed: int, dropout: float, name: str) -> list[float]:
        model = tiny_reward_model(lora_dropout=dropout)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.fill_(0.1)
        frozen = {"optimizer": {"type": AdamW, "lr": 0.0}}
        runner = run_of(
            model,
            pairs(8),
            tmp_path / name,
            max_steps=3,
            shuffle=False,
            token_budget=999,
            seed=seed,
            optim_wrapper=frozen,
        )
        return [log["loss"] for log in train(runner)]

    # 8 groups in every step and no update: without dropout all steps are equal, with it they differ.
    assert len(set(losses(0, 0.0, "a"))) == 1
    with_dropout = losses(0, 0.5, "b")
    assert len(set(with_dropout)) == 3
    assert losses(0, 0.5, "c") == with_dropout
    assert losses(1, 0.5, "d") != with_dropout


# ---------------------------------------------------------------- non-finite values


class BrokenModel(ToyModel):
    """The loss of some groups is not finite, or its gradient alone."""

    def __init__(self, bad_groups: set[int], value: float, gradient_only: bool = False) -> None:
        super().__init__()
        self.bad_groups, self.value, self.gradient_only = bad_groups, value, gradient_only

    def group_losses(self, batch: PackedBatch) -> Tensor:
        losses = super().group_losses(batch)
        bad = torch.tensor([int(group) in self.bad_groups for group in batch.group_ids])
        if self.gradient_only:
            # The square root's slope at 0 is infinite; its value is 0.
            return losses + torch.where(bad, torch.sqrt(self.weight - self.weight.detach()), torch.zeros(1))
        return losses + torch.where(bad, self.value, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_stops_before_the_weights_are_touched(tmp_path: Path, value: float) -> None:
    model = BrokenModel({5, 6}, value)
    runner = run_of(model, pairs(8), tmp_path, max_steps=2, groups_per_step=4, shuffle=False, optim_wrapper=ADAMW)
    batches = [runner.loop.dataloader.load(step) for step in (0, 1)]
    runner.loop.run_step(batches[0])
    before = model.weight.clone()
    with pytest.raises(TrainingError) as error:
        runner.loop.run_step(batches[1])
    assert str(error.value).startswith(f"step 2: loss {value:g}, gradient norm ")
    assert str(error.value).endswith(
        "; stopped before the weights were touched; rows with a non-finite loss: toy row 5, toy row 6. "
        "Lower the learning rate, or look at these rows"
    )
    assert torch.equal(model.weight, before)


def test_a_non_finite_gradient_stops_too(tmp_path: Path) -> None:
    """The loss is finite, so no single row can be blamed: those of the step are named, the first eight of them."""
    model = BrokenModel({5}, 0.0, gradient_only=True)
    runner = run_of(model, pairs(12), tmp_path, max_steps=1, groups_per_step=12, shuffle=False)
    with pytest.raises(TrainingError) as error:
        train(runner)
    assert "step 1: loss 0, gradient norm " in str(error.value)
    rows = ", ".join(f"toy row {row}" for row in range(8))
    assert f"; rows of the step: {rows} and 4 more. " in str(error.value)
    assert model.weight.item() == 0.0


def test_a_run_that_stops_does_not_hang(tmp_path: Path) -> None:
    """The thread that packs ahead is let go when a step raises."""
    runner = run_of(BrokenModel({0}, math.nan), pairs(), tmp_path, max_steps=100)
    with pytest.raises(TrainingError):
        runner.loop.run()
    assert runner.loop.iter < 100


# ---------------------------------------------------------------- being asked to stop, and running out of memory


def test_a_request_stops_the_run_after_its_step(tmp_path: Path) -> None:
    """Asked for in step 2 of 5, by a signal: the step is done, its hooks run, and nothing follows it."""
    runner = run_of(ToyModel(), pairs(24), tmp_path, max_steps=5)
    loop = runner.loop
    loop.stop_request = StopRequest()
    stopping: list[bool] = []

    def call_hook(name: str, **kwargs: Any) -> None:
        runner.called.append(name)
        if name == "before_train_iter" and loop.iter == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if name == "after_train_iter":
            stopping.append(loop.is_stopping)

    runner.call_hook = call_hook
    with loop.stop_request.listening():
        loop.run()
    assert loop.iter == 2
    assert stopping == [False, True]
    assert runner.called[-3:] == ["after_train_iter", "after_train_epoch", "after_train"]


def test_a_request_in_the_last_step_changes_nothing(tmp_path: Path) -> None:
    runner = run_of(ToyModel(), pairs(24), tmp_path, max_steps=1)
    runner.loop.stop_request = StopRequest()
    with runner.loop.stop_request.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        runner.loop.run()
    assert runner.loop.iter == 1


def test_stopped_steps_log_the_same_values(tmp_path: Path) -> None:
    runner = run_of(ToyModel(), pairs(24), tmp_path, max_steps=1)
    (values,) = train(runner)
    assert not any("stop" in name for name in values)


class HungryModel(ToyModel):
    """Has no memory left in its third micro-batch."""

    calls = 0

    def forward(self, batch: PackedBatch) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return super().forward(batch)


def test_no_memory_for_a_micro_batch(tmp_path: Path) -> None:
    """Four groups, one to a micro-batch."""
    dataset = pairs(4)
    runner = run_of(HungryModel(), dataset, tmp_path, max_steps=1, groups_per_step=4, token_budget=1, shuffle=False)
    with pytest.raises(TrainingError) as raised:
        train(runner)
    assert re.fullmatch(
        r"step 1: rank 0 of 1 has no memory left on cpu \([\d,]+ MiB at most so far\) for micro-batch 3 of 4, "
        r"\d tokens in 1 group\(s\): lower train_dataloader\.token_budget, now 1, or max_length, or turn on gradient "
        r"checkpointing \(CUDA out of memory\. Tried to allocate 20\.00 MiB\.\)",
        str(raised.value),
    )


def test_no_memory_for_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = run_of(ToyModel(), pairs(4), tmp_path, max_steps=1)

    def step() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(runner.strategy, "step", step)
    with pytest.raises(TrainingError, match=r"at most so far\) to update the weights: train fewer of them \("):
        train(runner)
