"""Every strategy on two processes equals one process: losses, weights, and runs that go on under another one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from same_runs import assert_same_logs, assert_same_weights, found_together
from strategy_worker import SAVED_AT, STEPS, THEN_AT, job, train_under

from xrlhf.engine.checkpoint import load_checkpoint, verify
from xrlhf.engine.shares import SharedTensors

pytestmark = pytest.mark.slow

has_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("ddp", {}),
    "fsdp": ("fsdp", {}),
    "fsdp_kept": ("fsdp", {"reshard_after_forward": False}),
    "zero1": ("zero1", {}),
    "zero2": ("zero2", {}),
    "zero2_offload": ("zero2_offload", {}),
    # Weights of so small a model would otherwise never be split.
    "zero3": ("zero3", {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}),
    "zero3_offload": ("zero3_offload", {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}),
}


# Models that are split over processes have to run equally often everywhere, however many rows a process pads.
PADDED = ("fsdp", "zero3")
RANKING = ("acc", "margin")

# Weights whole on every process, kept whole among split ones, and split.
QUANTISED = ("ddp", "fsdp", "zero2", "zero3")


def job_of(name: str, strategy: str, options: dict[str, Any], *, resume: str = "") -> dict[str, Any]:
    """The name says what kind of model is trained."""
    kind = name.rpartition("_")[2]
    model = "qlora" if kind == "qlora" else "reward"
    layout = "padded" if kind == "padded" else "auto"
    return job(name, strategy, options, model=model, resume=resume, lora=kind == "lora", layout=layout)


FROM = dict(zip(STRATEGIES, [*list(STRATEGIES)[3:], *list(STRATEGIES)[:3]], strict=True))
"""Whose shards each strategy goes on from: another's."""


def shards_of(name: str) -> str:
    return f"{name}/beside/iter_{SAVED_AT}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of all checkpoints, and what process 0 saw of every job."""
    folder = tmp_path_factory.mktemp("strategies")
    names = ["one", "one_lora", "one_padded", *(["one_qlora"] if has_bitsandbytes else [])]
    single = {name: train_under(job_of(name, "single", {}), folder) for name in names}
    jobs = []
    for name, (strategy, options) in STRATEGIES.items():
        jobs.append(job_of(name, strategy, options))
        jobs.append(job_of(f"{name}_lora", strategy, options))
        if name in PADDED:
            jobs.append(job_of(f"{name}_padded", strategy, options))
        if has_bitsandbytes and name in QUANTISED:
            jobs.append(job_of(f"{name}_qlora", strategy, options))
        jobs.append(job_of(f"one_to_{name}", strategy, options, resume=f"one/iter_{SAVED_AT}.pth"))
    for name, (strategy, options) in STRATEGIES.items():
        jobs.append(job_of(f"shards_to_{name}", strategy, options, resume=shards_of(FROM[name])))
    return folder, {**single, **found_together(jobs, folder)}


def weights(folder: Path, name: str, step: int = STEPS) -> dict[str, torch.Tensor]:
    return torch.load(folder / name / f"iter_{step}.pth", weights_only=True)["state_dict"]


@pytest.mark.parametrize("adapters", ["", "_lora"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_equal_one(trained: tuple[Path, dict[str, Any]], name: str, adapters: str) -> None:
    folder, found = trained
    assert_same_logs(found[name + adapters]["logs"], found["one" + adapters]["logs"], RANKING)
    assert_same_weights(folder, name + adapters, "one" + adapters, STEPS)


@pytest.mark.parametrize("name", PADDED)
def test_two_processes_equal_one_in_padded_rows(trained: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, found = trained
    assert_same_logs(found[f"{name}_padded"]["logs"], found["one_padded"]["logs"], RANKING)
    assert_same_weights(folder, f"{name}_padded", "one_padded", STEPS)


@pytest.mark.skipif(not has_bitsandbytes, reason="needs bitsandbytes: pip install 'xrlhf[quantised]'")
@pytest.mark.parametrize("name", QUANTISED)
def test_two_processes_equal_one_on_a_base_in_4_bits(trained: tuple[Path, dict[str, Any]], name: str) -> None:
    """QLoRA; shards and files hold the adapters and the head alone."""
    folder, found = trained
    assert_same_logs(found[f"{name}_qlora"]["logs"], found["one_qlora"]["logs"], RANKING)
    assert_same_weights(folder, f"{name}_qlora", "one_qlora", STEPS)
    state = load_checkpoint(folder / shards_of(f"{name}_qlora"))
    assert equal(state["state_dict"], weights(folder, f"{name}_qlora", SAVED_AT))
    assert not any("base_layer" in key for key in state["state_dict"])


@pytest.mark.parametrize("name", STRATEGIES)
def test_validation_counts_every_group_once(trained: tuple[Path, dict[str, Any]], name: str) -> None:
    """Seven batches on two processes: one of them computes one that does not count."""
    _, found = trained
    expected = found["one"]["evaluated"]
    assert found[name]["evaluated"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_process_goes_on_under_the_strategy(trained: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, found = trained
    assert_same_logs(found[f"one_to_{name}"]["logs"], found["one"]["logs"][SAVED_AT:], RANKING)
    assert_same_weights(folder, f"one_to_{name}", "one", STEPS)


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_process_goes_on_from_the_strategy(trained: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, found = trained
    resumed = train_under(job_of(f"{name}_to_one", "single", {}, resume=f"{name}/iter_{SAVED_AT}.pth"), folder)
    assert_same_logs(resumed["logs"], found["one"]["logs"][SAVED_AT:], RANKING)
    assert_same_weights(folder, f"{name}_to_one", "one", STEPS)


def equal(one: Any, other: Any) -> bool:
    """Whether two states are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (dict, SharedTensors)):
        return set(one) == set(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize("adapters", ["", "_lora"])
@pytest.mark.parametrize("name", ["one", *STRATEGIES])
def test_what_was_written_beside_training_is_what_was_there_when_it_was_saved(
    trained: tuple[Path, dict[str, Any]], name: str, adapters: str
) -> None:
    """Shards and a file, held back for five steps, equal the file for which training waited."""
    run = trained[0] / f"{name}{adapters}"
    for step, beside in ((SAVED_AT, f"iter_{SAVED_AT}"), (THEN_AT, f"iter_{THEN_AT}.pth")):
        assert verify(run / "beside" / beside) is None
        expected, found = load_checkpoint(run / f"iter_{step}.pth"), load_checkpoint(run / "beside" / beside)
        assert set(found) == set(expected) == {"state_dict", "optimizer", "param_schedulers", "meta"}
        for part in expected:
            assert equal(found[part], expected[part]), part
        assert len(found["optimizer"]["state"]) > 0


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "ddp"])
def test_no_process_writes_another_s_share(trained: tuple[Path, dict[str, Any]], name: str) -> None:
    """Of weights and moments in float32, 12 bytes a weight, each of two files holds half."""
    shards = sorted((trained[0] / shards_of(name)).glob("shard_*"))
    assert [file.name for file in shards] == ["shard_00000_of_00002.pth", "shard_00001_of_00002.pth"]
    state = load_checkpoint(trained[0] / name / f"iter_{SAVED_AT}.pth")
    total = 12 * sum(value.numel() for value in state["state_dict"].values())
    for file in shards:
        assert pieces(torch.load(file)) == pytest.approx(total / 2, rel=0.02)


def pieces(value: Any) -> int:
    """Bytes of the tensors in a shard."""
    if isinstance(value, torch.Tensor):
        assert value.untyped_storage().nbytes() == value.nbytes
        return value.nbytes
    if isinstance(value, (dict, list, tuple)):
        return sum(pieces(item) for item in (value.values() if isinstance(value, dict) else value))
    return 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_goes_on_from_the_shards_of_another(trained: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, found = trained
    assert_same_logs(found[f"shards_to_{name}"]["logs"], found["one"]["logs"][SAVED_AT:], RANKING)
    assert_same_weights(folder, f"shards_to_{name}", "one", STEPS)


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_process_goes_on_from_shards(trained: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, found = trained
    resumed = train_under(job_of(f"{name}_shards_to_one", "single", {}, resume=shards_of(name)), folder)
    assert_same_logs(resumed["logs"], found["one"]["logs"][SAVED_AT:], RANKING)
    assert_same_weights(folder, f"{name}_shards_to_one", "one", STEPS)


def test_three_processes_go_on_from_two_and_one_from_three(trained: tuple[Path, dict[str, Any]]) -> None:
    """Where tensors are cut elsewhere than they were saved, and sizes do not divide by three."""
    folder, found = trained
    others = {"fsdp": "zero3", "zero3": "fsdp", "zero1": "zero3_offload"}
    jobs = [job(f"two_to_three_{name}", *STRATEGIES[name], resume=shards_of(other)) for name, other in others.items()]
    jobs += [job(f"three_{name}", *STRATEGIES[name]) for name in ("fsdp", "zero3")]
    seen = found_together(jobs, folder, world_size=3)
    for name in others:
        assert_same_logs(seen[f"two_to_three_{name}"]["logs"], found["one"]["logs"][SAVED_AT:], RANKING)
        assert_same_weights(folder, f"two_to_three_{name}", "one", STEPS)
    for name in ("fsdp", "zero3"):
        assert equal(
            load_checkpoint(folder / shards_of(f"three_{name}"))["optimizer"],
            load_checkpoint(folder / f"three_{name}" / f"iter_{SAVED_AT}.pth")["optimizer"],
        )
        again = f"three_{name}_to_one"
        resumed = train_under(job_of(again, "single", {}, resume=shards_of(f"three_{name}")), folder)
        assert_same_logs(resumed["logs"], found["one"]["logs"][SAVED_AT:], RANKING)
        assert_same_weights(folder, again, "one", STEPS)
