"""Two processes equal one, in every number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from torch.optim import AdamW
from toy import pairs, run_of, tiny_reward_model, train, weights_of

from xrlhf.engine.checkpoint import verify
from xrlhf.models.flops import matrix_flops

pytestmark = pytest.mark.slow

ADAMW = {"optimizer": {"type": AdamW, "lr": 1e-2, "weight_decay": 0.1}, "max_grad_norm": 1.0}
WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What both processes found, and the folder they worked in."""
    folder = tmp_path_factory.mktemp("ddp")
    run_processes(WORKER, folder)
    return folder, [torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("token_budget", [10_000, 40, 1])
def test_two_processes_equal_one(
    tmp_path: Path, two_ranks: tuple[Path, list[dict[str, Any]]], token_budget: int
) -> None:
    """Loss, metrics, gradient norm and weights of five steps, whatever the size of the micro-batches."""
    model = tiny_reward_model()
    alone = train(run_of(model, pairs(), tmp_path, max_steps=5, token_budget=10_000, optim_wrapper=ADAMW))
    for found in two_ranks[1]:
        for one, other in zip(alone, found["logs"][token_budget], strict=True):
            for name in ("loss", "grad_norm", "acc", "margin", "chosen_score_mean", "num_samples", "num_tokens"):
                assert other[name] == pytest.approx(one[name], rel=1e-6, abs=1e-6), name
        for a, b in zip(weights_of(model), found["weights"][token_budget], strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=1e-6)


def test_both_processes_hold_the_same_weights(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (found["weights"] for found in two_ranks[1])
    for budget, weights in first.items():
        assert all(torch.equal(a, b) for a, b in zip(weights, second[budget], strict=True))


def test_a_process_without_a_group_of_its_own(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    """Losses w, 2w, 3w of three groups: the gradient of their mean is 2, filler or not."""
    for found in two_ranks[1]:
        log, weight = found["filler"]
        assert (log["num_samples"], log["grad_norm"], weight) == (3.0, 2.0, -2.0)
        assert log["num_tokens"] == pairs(3).num_tokens().sum()


def test_the_share_of_the_rate_of_both(two_ranks: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Rates of 1 and 3 GFLOP/s are 4 together; the FLOPs of a step are those of one process, filler left out."""
    alone = run_of(tiny_reward_model(), pairs(3), tmp_path, max_steps=1, groups_per_step=3)
    flops = matrix_flops(alone.model.hf_model)
    expected = sum(flops.of(batch.segments) for batch in alone.loop.dataloader.load(0).batches)
    for found in two_ranks[1]:
        values, share = found["throughput"]
        seconds = values["num_tokens"] / values["tokens_per_second"]
        assert share == pytest.approx(expected / seconds / 4e9, rel=1e-6)
        assert values["groups_per_second"] == pytest.approx(3 / seconds)


def test_parameters_that_take_no_part(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [found["half_used"] for found in two_ranks[1]] == [2, 2]


def test_a_row_that_one_process_holds_stops_both(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    """The gradient, the mean of 1 to 8, is finite; the loss is not."""
    messages = [found["non_finite"] for found in two_ranks[1]]
    assert messages[0] == messages[1]
    assert messages[0].startswith("step 1: loss nan, gradient norm 4.5; stopped before the weights were touched; ")
    assert "; rows with a non-finite loss: toy row 5. " in messages[0]
    assert [found["weight_after_non_finite"] for found in two_ranks[1]] == [0.0, 0.0]


def test_objects_are_gathered_in_the_order_of_ranks(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in two_ranks[1]:
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}]


def test_one_process_saves_and_all_learn_how_it_went(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (first, second) = two_ranks
    assert verify(folder / "saved" / "iter_1.pth") is None
    # When the call returns, the file is there for both.
    assert first["is_saved"]
    assert second["is_saved"]
    assert first["failed_save"] == second["failed_save"]
    assert first["failed_save"].startswith(f"checkpoint {folder / 'blocked' / 'iter_1.pth'} could not be written (")
