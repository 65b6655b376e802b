"""Everything a run would do, without doing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config

from xrlhf.config import load_recipe
from xrlhf.devices import CpuDevice
from xrlhf.engine.dry_run import dry_run, plan_run
from xrlhf.engine.launch import Ranks
from xrlhf.engine.strategies import STRATEGIES_BY_NAME
from xrlhf.errors import ConfigError

STRATEGIES_BY_NAME_IN_PLANS = (
    "single",
    "ddp",
    "fsdp",
    "zero1",
    "zero2",
    "zero3",
    "fsdp_offload",
    "zero2_offload",
    "zero3_offload",
)


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path]) -> Config:
    return load_recipe(tiny_recipe())


def test_the_report(recipe: Config, tmp_path: Path) -> None:
    """The adapters of rank 4 on the seven matrices of the layer, and the head; 20 steps of 8 groups.

    q, k, v, o: 16 x 16, so 4 * 4 * (16 + 16) = 512. gate, up, down: 16 x 32, so 3 * 4 * (16 + 32) = 576. Head: 16.
    """
    lines = list(dry_run(recipe, Ranks()))
    headings = [line for line in lines if line.startswith("# ---- ")]
    assert headings == [
        "# ---- resolved recipe",
        "# ---- data",
        "# ---- model",
        "# ---- steps",
        "# ---- memory of one device, at the peak of a step",
    ]
    model = lines[lines.index("# ---- model") + 1]
    assert model.endswith(f" parameters, {512 + 576 + 16:,} of them trained")
    steps = lines[lines.index("# ---- steps") + 1 : lines.index(headings[-1])]
    assert steps[0] == "20 optimizer steps of 8 groups: 160 groups"
    # 861 tokens in 64 groups are 13.5 per group; 160 groups of that length are 2,152.
    assert steps[1] == "about 2,152 tokens to compute, 13.5 per group"
    assert steps[2].startswith("step 1 has ")
    assert steps[2].endswith(" micro-batch(es) on each of 1 process(es)")
    *memory, moment = lines[lines.index(headings[-1]) + 1 : -1]
    names = ["weights", "gradients", "optimizer", "activations", "buffers", "total"]
    assert [line.split()[0] for line in memory] == names
    assert all(line.endswith(" MiB") for line in memory)
    assert moment.startswith("in the ")
    assert any(line.startswith("train: ") and "64 of 64 rows became groups" in line for line in lines)
    assert any(line.startswith("val: ") for line in lines)
    assert lines[-1] == "nothing was trained"
    assert not (tmp_path / "tiny").exists()


def test_the_recipe_in_the_report_reads_back(recipe: Config, tmp_path: Path) -> None:
    recipe.hub_token = "hf_0123456789abcdef"
    text = list(dry_run(recipe, Ranks()))[1]
    assert "hf_0123456789abcdef" not in text
    (tmp_path / "again.py").write_text(text)
    assert load_recipe(tmp_path / "again.py").to_dict() == {**recipe.to_dict(), "hub_token": "***"}


def test_several_processes(recipe: Config) -> None:
    lines = list(dry_run(recipe, Ranks(world_size=2, launcher="pytorch")))
    assert any(line.endswith("micro-batch(es) on each of 2 process(es)") for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "zero9"}, "unknown strategy 'zero9'"),
        ({"param_scheduler": {"type": "LinearLR", "end": 3.0}}, r"param_scheduler\[0\]\.end=3\.0"),
        ({"optim_wrapper": {"optimizer": {"type": "AdamW", "lr": -1.0}}}, r"optim_wrapper\.optimizer: .*-1\.0"),
        ({"train_cfg": {"type": "xrlhf.engine.loops.GroupTrainLoop"}}, "either max_epochs or max_steps"),
    ],
)
def test_what_would_stop_a_run_stops_it(recipe: Config, change: dict[str, object], message: str) -> None:
    recipe.merge_from_dict(dict.fromkeys(change))
    for name, value in change.items():
        recipe[name] = value
    with pytest.raises(ConfigError, match=message):
        list(dry_run(recipe, Ranks()))


def test_a_model_of_another_kind_has_no_memory_section(recipe: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    import xrlhf.engine.dry_run as module

    monkeypatch.setattr(module, "RewardModel", type(None))
    assert "it is planned for a RewardModel or a PolicyModel, and model.type is RewardModel" in list(
        dry_run(recipe, Ranks())
    )


# ---------------------------------------------------------------- plans of many devices


def table_of(lines: list[str]) -> dict[str, list[str]]:
    """The rows of the table, by strategy."""
    start = next(number for number, line in enumerate(lines) if line.startswith("strategy "))
    rows = [line.split() for line in lines[start + 1 :]]
    return {row[0]: row[1:] for row in rows if row and row[0] in STRATEGIES_BY_NAME}


def test_a_plan_says_what_fits_and_what_to_take(recipe: Config, tmp_path: Path) -> None:
    lines = list(plan_run(recipe, 4, CpuDevice(), memory_gib=1.0, tflops=1.0, link_gbs=10.0))
    assert lines[1].endswith(f" parameters, {512 + 576 + 16:,} of them trained")
    assert lines[2] == "LlamaForSequenceClassification, packed rows, float32, activations kept"
    assert lines[4].startswith("from the data; the first ")
    assert list(table_of(lines)) == [name for name in STRATEGIES_BY_NAME_IN_PLANS if name != "single"]
    # DeepSpeed's bucket of two gigabytes does not fit into one.
    fits = {name: row[6] for name, row in table_of(lines).items()}
    assert fits["ddp"] == fits["fsdp"] == "yes"
    assert fits["zero2"] == fits["zero3"] == "no"
    assert lines[-1].startswith("take --strategy ddp: ")
    assert not (tmp_path / "tiny").exists()


def test_a_plan_needs_neither_weights_nor_data(recipe: Config, tmp_path: Path) -> None:
    """A directory with a config alone, and a data file that is not there."""
    from transformers import LlamaConfig

    LlamaConfig(  # type: ignore[call-arg]
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(tmp_path / "model")
    backbone = {"type": "xrlhf.models.backbone_from_pretrained", "path": str(tmp_path / "model")}
    recipe.model["backbone"] = backbone
    recipe.train_dataloader.dataset["sources"][0]["source"] = str(tmp_path / "nowhere.jsonl")
    lines = list(plan_run(recipe, 2, CpuDevice(), memory_gib=80.0))
    assert any(line.startswith("from assumed, pairs of conversations of 64 tokens") for line in lines)
    assert any("nowhere.jsonl" in line for line in lines)
    assert table_of(lines)


def test_a_plan_says_what_it_was_not_told(recipe: Config) -> None:
    lines = list(plan_run(recipe, 2, CpuDevice()))
    assert "what fits cannot be said: there is no GPU here to ask; add --gpu-memory GIB" in lines
    assert "time cannot be said: there is no GPU here to measure; add --gpu-tflops TFLOPS" in lines
    assert lines[-1].startswith("least memory: --strategy ")
    assert {row[6] for row in table_of(lines).values()} == {"?"}
    without_link = list(plan_run(recipe, 2, CpuDevice(), memory_gib=1.0, tflops=1.0))
    assert any(line.startswith("traffic is left out of the time: add --link") for line in without_link)


def test_a_plan_for_a_cpu_that_was_asked_for(recipe: Config) -> None:
    lines = list(plan_run(recipe, 1, CpuDevice(), is_named=True))
    assert "?" not in lines[-2]
    assert lines[-1].startswith("take --strategy single: ")


def test_when_nothing_fits(recipe: Config) -> None:
    (line,) = list(plan_run(recipe, 2, CpuDevice(), memory_gib=1e-5))[-1:]
    assert line.startswith("nothing fits into ")
    assert "model.gradient_checkpointing=True" in line
    assert line.endswith("or more devices")


def test_more_devices_than_groups(recipe: Config) -> None:
    """8 groups of a step on 16 devices: half of them have nothing to do."""
    lines = list(plan_run(recipe, 16, CpuDevice()))
    assert any("raise groups_per_step, or take fewer devices" in line for line in lines)


@pytest.mark.parametrize(
    ("number", "options", "message"),
    [
        (0, {}, "--gpus must be at least 1, got 0"),
        (2, {"memory_gib": -1.0}, "--gpu-memory must be above 0, got -1"),
        (2, {"tflops": 0.0}, "--gpu-tflops must be above 0, got 0"),
        (2, {"link_gbs": 0.0}, "--link must be above 0, got 0"),
    ],
)
def test_numbers_that_no_device_has(recipe: Config, number: int, options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(plan_run(recipe, number, CpuDevice(), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["top", "strategy"])
def test_sequence_parallel_is_refused(recipe: Config, where: str) -> None:
    if where == "top":
        recipe.sequence_parallel_size = 2
    else:
        recipe.strategy = {"type": "fsdp", "sequence_parallel": 4}
    with pytest.raises(ConfigError, match=r"sequence_parallel.*=[24]: one conversation is not split over devices"):
        list(plan_run(recipe, 2, CpuDevice()))
    with pytest.raises(ConfigError, match="one conversation is not split over devices"):
        list(dry_run(recipe, Ranks(world_size=2, launcher="pytorch")))


# ---------------------------------------------------------------- policies


@pytest.fixture
def policy_recipe(recipe: Config, tmp_path: Path) -> Config:
    """DPO of a Llama of which there is a config alone, on data that is not there."""
    from transformers import LlamaConfig

    LlamaConfig(  # type: ignore[call-arg]
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(tmp_path / "model")
    recipe.train_dataloader.dataset["sources"][0]["source"] = str(tmp_path / "nowhere.jsonl")
    recipe.train_dataloader.dataset["targets"] = "answer"
    recipe.model = {
        "type": "xrlhf.models.PolicyModel",
        "backbone": {"type": "xrlhf.models.causal_lm_from_pretrained", "path": str(tmp_path / "model")},
        "loss": {"type": "xrlhf.losses.policy.DPOLoss"},
    }
    return recipe


@pytest.mark.parametrize(
    ("model", "words", "weights"),
    [
        ({"reference": "copy"}, "a frozen copy of itself, whose weights are counted too", 2),
        ({"reference": "cached"}, "log-probabilities from disk", 1),
        ({"lora": {"r": 2}}, "itself without its adapters, which holds no more weights", 1),
        ({"loss": {"type": "xrlhf.losses.policy.ORPOLoss"}}, "", 1),
    ],
    ids=["copy", "cached", "adapter_off", "none"],
)
def test_a_plan_of_a_policy(policy_recipe: Config, model: dict[str, object], words: str, weights: int) -> None:
    """Whose model is 16 wide.

    q, k, v, o: 16 x 16. gate, up, down: 16 x 32. Three norms of 16. Embeddings and output layer: 16 a row.
    """
    policy_recipe.model.update(model)
    lines = list(plan_run(policy_recipe, 2, CpuDevice(), memory_gib=80.0, tflops=1.0, link_gbs=10.0))
    found, _, of_trained = lines[1].partition(" parameters, ")
    rows = int(lines[1].split()[0].replace(",", "")) / weights - 4 * 256 - 3 * 512 - 48
    if "lora" in model:
        # Rank 2 on seven matrices: 2 x 32 for four of them and 2 x 48 for three.
        rows -= 4 * 64 + 3 * 96
        assert of_trained == f"{4 * 64 + 3 * 96} of them trained"
    else:
        assert of_trained == f"{int(found.replace(',', '')) // weights:,} of them trained"
    assert rows == 2 * 16 * 32
    assert lines[2] == "LlamaForCausalLM, packed rows, float32, activations kept"
    assert (f"compared with {words}" in lines) == bool(words)
    assert table_of(lines)["fsdp"][6] == "yes"


def test_a_policy_on_padded_rows_holds_more(policy_recipe: Config) -> None:
    policy_recipe.model["layout"] = "padded"
    lines = list(plan_run(policy_recipe, 2, CpuDevice(), memory_gib=80.0))
    assert lines[2] == "LlamaForCausalLM, padded rows, float32, activations kept"


def test_what_a_policy_could_do_where_nothing_fits(policy_recipe: Config) -> None:
    (line,) = list(plan_run(policy_recipe, 2, CpuDevice(), memory_gib=1e-5))[-1:]
    assert "model.reference='cached', adapters (model.lora) or more devices" in line


def test_the_report_of_a_policy(policy_recipe: Config, tiny_parts: Path) -> None:
    policy_recipe.train_dataloader.dataset["sources"][0]["source"] = str(tiny_parts / "pairs.jsonl")
    policy_recipe.val_dataloader = policy_recipe.val_cfg = None
    policy_recipe.model["backbone"] = {
        "type": "xrlhf.models.causal_lm_from_config",
        **{"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32},
        **{"num_hidden_layers": 1, "num_attention_heads": 2},
    }
    lines = list(dry_run(policy_recipe, Ranks()))
    memory = lines[lines.index("# ---- memory of one device, at the peak of a step") + 1 : -2]
    names = ["weights", "gradients", "optimizer", "activations", "buffers", "total"]
    assert [line.split()[0] for line in memory] == names
    held = {line.split()[0]: float(line.split()[1]) for line in memory}
    assert held["total"] > 0
    assert held["weights"] >= held["gradients"]
