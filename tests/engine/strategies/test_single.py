"""One process: what is saved, and what a checkpoint may go on with."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import SGD, AdamW
from toy import ToyModel, pairs, run_of, tiny_reward_model, train

from xrlhf.devices import CpuDevice
from xrlhf.engine import checkpoint
from xrlhf.engine.checkpoint import find_checkpoints, load_checkpoint, save_checkpoint, verify
from xrlhf.engine.strategies import SingleStrategy
from xrlhf.errors import CheckpointError, TrainingError

COSINE = {"type": CosineAnnealingLR, "eta_min": 0.0}


def strategy(
    work_dir: Path, optimizer: dict[str, Any] | None = None, schedules: Any = COSINE, max_steps: int = 10
) -> SingleStrategy:
    built = SingleStrategy(
        device=CpuDevice(),
        work_dir=str(work_dir),
        env_kwargs={"launcher": "none", "randomness": {"seed": 0}},
        experiment_name=f"{work_dir} {len(list(work_dir.iterdir()))}",
    )
    built.prepare(
        ToyModel(),
        optim_wrapper={"optimizer": optimizer or {"type": AdamW, "lr": 0.5}},
        param_scheduler=schedules,
        dispatch_kwargs={"max_iters": max_steps},
    )
    return built


def saved(work_dir: Path, **options: Any) -> Path:
    """A checkpoint after three steps."""
    one = strategy(work_dir, **options)
    for _ in range(3):
        one.backward(one.model.weight.sum())
        one.step()
        for scheduler in one.param_schedulers:
            scheduler.step()
    path = work_dir / "iter_3.pth"
    one.save_checkpoint(str(path), extra_ckpt={"meta": {"step": 3}})
    return path


def test_what_is_in_a_checkpoint(tmp_path: Path) -> None:
    path = saved(tmp_path)
    state = load_checkpoint(path)
    assert set(state) == {"state_dict", "optimizer", "param_schedulers", "meta"}
    assert state["meta"]["step"] == 3
    assert state["meta"]["optimizer"] == "AdamW"
    assert state["meta"]["param_schedulers"] == ["CosineAnnealingLR"]
    assert (state["meta"]["seed"], state["meta"]["world_size"], state["meta"]["strategy"]) == (0, 1, "SingleStrategy")
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []


def test_going_on(tmp_path: Path) -> None:
    path = saved(tmp_path)
    state = load_checkpoint(path)
    other = strategy(tmp_path)
    rest = other.resume(str(path))
    assert rest["meta"]["step"] == 3
    assert set(rest) == {"meta"}
    assert other.module.weight.item() == state["state_dict"]["weight"].item() != 0.0
    assert other.optim_wrapper.get_lr()["lr"] == [group["lr"] for group in state["optimizer"]["param_groups"]]
    assert other.param_schedulers[0].last_step == 3
    assert other.optim_wrapper.optimizer.state_dict()["state"][0]["step"].item() == 3.0


def test_only_the_weights(tmp_path: Path) -> None:
    path = saved(tmp_path)
    other = strategy(tmp_path)
    other.load_checkpoint(str(path))
    assert other.module.weight.item() != 0.0
    assert other.optim_wrapper.optimizer.state_dict()["state"] == {}
    assert other.param_schedulers[0].last_step == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"optimizer": {"type": SGD, "lr": 0.5}},
            r"was trained with optimizer=AdamW and the recipe says SGD: go on with the same, or use --load-from",
        ),
        (
            {"schedules": [{"type": LinearLR}, COSINE]},
            r"was trained with param_schedulers=\['CosineAnnealingLR'\] and the recipe says \['LinearLR', 'Cosine",
        ),
    ],
)
def test_another_optimizer_or_schedule(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    path = saved(tmp_path)
    other = strategy(tmp_path, **options)
    with pytest.raises(CheckpointError, match=rf"^{path} {problem}"):
        other.resume(str(path))


def test_another_setting_of_the_same_schedule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on as it would have: with the schedule of the checkpoint; and says so."""
    monkeypatch.setattr(logging.getLogger("xrlhf"), "propagate", True)
    path = saved(tmp_path)
    other = strategy(tmp_path, max_steps=20)
    other.resume(str(path))
    assert "the recipe changes CosineAnnealingLR (T_max from 10 to 20, end from 10 to 20), but a resumed" in caplog.text
    assert other.param_schedulers[0].end == 10


@pytest.mark.parametrize("part", ["optimizer", "param_schedulers"])
def test_weights_alone_are_nothing_to_go_on_from(tmp_path: Path, part: str) -> None:
    path = saved(tmp_path)
    state = load_checkpoint(path)
    del state[part]
    save_checkpoint(state, path)
    with pytest.raises(
        CheckpointError, match=rf"^{path} holds no {part} state to go on from: it can serve --load-from"
    ):
        strategy(tmp_path).resume(str(path))


def test_an_optimizer_state_that_does_not_fit(tmp_path: Path) -> None:
    path = saved(tmp_path)
    state = load_checkpoint(path)
    state["optimizer"]["param_groups"] *= 2
    save_checkpoint(state, path)
    with pytest.raises(CheckpointError, match=rf"^{path} does not fit the recipe's optimizer: "):
        strategy(tmp_path).resume(str(path))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, value: float) -> None:
    one = strategy(tmp_path)
    one.module.weight.data.fill_(value)
    with pytest.raises(TrainingError, match=r"iter_9\.pth was not saved: 1 of 1 weights are not finite after the last"):
        one.save_checkpoint(str(tmp_path / "iter_9.pth"))
    assert not list(tmp_path.glob("iter_*"))


@pytest.fixture
def let_go(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written before this event."""
    event, write = threading.Event(), checkpoint.write_state

    def wait_and_write(*args: Any) -> Any:
        assert event.wait(timeout=60)
        return write(*args)

    monkeypatch.setattr(checkpoint, "write_state", wait_and_write)
    return event


@pytest.mark.parametrize("name", ["iter_1.pth", "iter_1"])
def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, let_go: threading.Event, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is saved is the state at the time of saving; it counts when it is whole."""
    logging.getLogger("xrlhf").propagate = True
    caplog.set_level(logging.INFO)
    one = strategy(tmp_path)
    train_a_step(one)
    weight, lr = one.module.weight.item(), one.optim_wrapper.get_lr()["lr"]
    one.save_checkpoint(str(tmp_path / name), extra_ckpt={"meta": {"step": 1}}, overlap=True)
    train_a_step(one)
    assert one.module.weight.item() != weight
    assert one.finish_saving(wait=False) is None
    assert find_checkpoints(tmp_path) == []
    let_go.set()
    assert one.finish_saving() == tmp_path / name
    assert one.finish_saving() is None
    assert verify(tmp_path / name) is None
    state = load_checkpoint(tmp_path / name)
    assert state["state_dict"]["weight"].item() == weight
    assert state["optimizer"]["state"][0]["step"].item() == 1.0
    assert [group["lr"] for group in state["optimizer"]["param_groups"]] == lr
    assert state["param_schedulers"][0]["last_step"] == 1
    assert f"saved {tmp_path / name}: written in " in caplog.text
    other = strategy(tmp_path)
    other.resume(str(tmp_path / name))
    train_a_step(other)
    assert torch.equal(other.module.weight, one.module.weight)


def train_a_step(one: SingleStrategy) -> None:
    one.backward(one.model.weight.sum())
    one.step()
    for scheduler in one.param_schedulers:
        scheduler.step()


def test_one_checkpoint_is_written_at_a_time(tmp_path: Path, let_go: threading.Event) -> None:
    one = strategy(tmp_path)
    one.save_checkpoint(str(tmp_path / "iter_1.pth"), overlap=True)
    threading.Timer(0.1, let_go.set).start()
    one.save_checkpoint(str(tmp_path / "iter_2.pth"), overlap=True)
    assert verify(tmp_path / "iter_1.pth") is None
    assert one.finish_saving() == tmp_path / "iter_2.pth"


@pytest.mark.parametrize("name", ["iter_1.pth", "iter_1"])
@pytest.mark.parametrize("finish", [lambda one: one.finish_saving(), lambda one: one.save_checkpoint("iter_2.pth")])
def test_an_error_of_the_thread_is_an_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, finish: Callable[[SingleStrategy], Any]
) -> None:
    def fail(state: Any, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_state", fail)
    one = strategy(tmp_path)
    before = sorted(tmp_path.iterdir())
    one.save_checkpoint(str(tmp_path / name), overlap=True)
    with pytest.raises(CheckpointError, match=rf"/{name} could not be written \(\[Errno 28\] No space left on dev"):
        finish(one)
    assert sorted(tmp_path.iterdir()) == before
    assert one.finish_saving() is None


@pytest.mark.parametrize("name", ["iter_1.pth", "iter_1"])
def test_an_end_by_an_error_waits_for_what_is_being_written(tmp_path: Path, let_go: threading.Event, name: str) -> None:
    one = strategy(tmp_path)
    one.leave_saving()
    one.save_checkpoint(str(tmp_path / name), overlap=True)
    threading.Timer(0.1, let_go.set).start()
    one.leave_saving()
    assert verify(tmp_path / name) is None


def test_of_two_errors_the_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written must not hide why the run ends."""
    monkeypatch.setattr(checkpoint, "write_state", lambda *args: (_ for _ in ()).throw(OSError(28, "No space")))
    one = strategy(tmp_path)
    one.save_checkpoint(str(tmp_path / "iter_1.pth"), overlap=True)
    one.leave_saving()
    assert find_checkpoints(tmp_path) == []


def test_one_process_is_all_there_is(tmp_path: Path) -> None:
    one = strategy(tmp_path)
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(one.sum_over_ranks(values), values)
    assert one.gather_objects("a") == ["a"]
    one.barrier()
    assert one.module is one.model
    # A second preparation changes nothing.
    model = one.model
    one.prepare(ToyModel(), optim_wrapper={"optimizer": {"type": SGD, "lr": 1.0}})
    assert one.model is model


def test_without_per_step_seeds_a_resumed_run_would_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of exact resuming: the same two starts with generators that nobody seeds draw other dropout."""

    def last_weights(stop: int | None, name: str) -> list[torch.Tensor]:
        model = tiny_reward_model(lora_dropout=0.5)
        run = run_of(model, pairs(), tmp_path / name, max_steps=6, optim_wrapper={"optimizer": {"type": AdamW}})
        torch.manual_seed(1)
        if stop is None:
            train(run)
            return [value.clone() for value in model.state_dict().values()]
        batches = list(run.loop.dataloader.steps(0, 6))
        for batch in batches[:stop]:
            run.loop.run_step(batch)
        path = tmp_path / name / f"iter_{stop}.pth"
        run.strategy.param_schedulers = []
        run.strategy.save_checkpoint(str(path), extra_ckpt={"meta": {"step": stop}})
        again = tiny_reward_model(lora_dropout=0.5)
        second = run_of(
            again, pairs(), tmp_path / f"{name}_2", max_steps=6, optim_wrapper={"optimizer": {"type": AdamW}}
        )
        second.strategy.param_schedulers = []
        second.strategy.resume(str(path))
        torch.manual_seed(2)
        for batch in batches[stop:]:
            second.loop.run_step(batch)
        return [value.clone() for value in again.state_dict().values()]

    def differs(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))

    assert not differs(last_weights(None, "a"), last_weights(3, "b"))
    monkeypatch.setattr(CpuDevice, "seed_all", lambda self, seed: None)
    assert differs(last_weights(None, "c"), last_weights(3, "d"))
