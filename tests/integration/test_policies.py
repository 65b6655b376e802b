"""From practice conversations to a policy that prefers the better answer: SFT, export, DPO through adapters, export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

SFT_STEPS, DPO_STEPS = 24, 12
OF_SFT = [
    "train_cfg.max_epochs=None",
    "lr=5e-3",
    f"train_cfg.max_steps={SFT_STEPS}",
    "default_hooks.checkpoint.interval=8",
    "default_hooks.curves=None",
    "default_hooks.logger.interval=4",
    "train_dataloader.dataset.sources.0.source.num_groups=400",
    "val_dataloader.dataset.sources.0.source.num_groups=60",
]
OF_DPO = [*OF_SFT, f"train_cfg.max_steps={DPO_STEPS}", "default_hooks.checkpoint.interval=6", "nll_weight=0.0"]


@dataclass(frozen=True)
class Pipeline:
    """The folder of all stages, and what each command printed."""

    folder: Path
    printed: dict[str, CompletedProcess[str]]

    def log(self, stage: str) -> list[dict[str, Any]]:
        files = (self.folder / stage).glob("*/vis_data/scalars.json")
        return [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, xrlhf_in: Callable[..., CompletedProcess[str]]) -> Pipeline:
    folder = tmp_path_factory.mktemp("policies")
    base = f"pretrained_model_name_or_path={folder / 'sft_hf'}"
    adapters = ["model.lora={'r': 4, 'lora_alpha': 16}", "lr=1e-2"]
    commands: dict[str, list[Any]] = {
        "sft": ["train", "tiny_sft_cpu", "--work-dir", folder / "sft", "--cfg-options", *OF_SFT],
        "sft_hf": ["convert", "pth_to_hf", "tiny_sft_cpu", folder / "sft" / f"iter_{SFT_STEPS}.pth", folder / "sft_hf"],
        "dpo": ["train", "tiny_dpo_cpu", "--work-dir", folder / "dpo", "--cfg-options", base, *OF_DPO, *adapters],
        "dpo_hf": [
            *("convert", "pth_to_hf", "tiny_dpo_cpu", folder / "dpo" / f"iter_{DPO_STEPS}.pth", folder / "dpo_hf"),
            *("--cfg-options", base, *adapters),
        ],
    }
    printed = {}
    for name, command in commands.items():
        printed[name] = xrlhf_in(folder, *command)
        assert printed[name].returncode == 0, printed[name].stdout[-2000:] + printed[name].stderr[-2000:]
    return Pipeline(folder, printed)


def test_sft_learns(pipeline: Pipeline) -> None:
    losses = [row["loss"] for row in pipeline.log("sft") if "lr" in row]
    assert losses[-1] < losses[0] - 0.5
    validated = [row for row in pipeline.log("sft") if "lr" not in row]
    assert validated, "the last step validates"
    assert 0 < validated[-1]["val/loss"] < losses[0]


def test_dpo_begins_at_ln_2_and_learns(pipeline: Pipeline) -> None:
    """Before the first update policy and reference are one: every margin is 0."""
    rows = [row for row in pipeline.log("dpo") if "lr" in row]
    assert rows[-1]["loss"] < rows[0]["loss"] < 0.75
    assert rows[-1]["reward_acc"] > 0.5
    assert rows[-1]["reward_margin"] > 0


def test_the_export_is_what_was_trained(
    pipeline: Pipeline, xrlhf: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    found = {}
    for place in (pipeline.folder / "sft" / f"iter_{SFT_STEPS}.pth", pipeline.folder / "sft_hf"):
        out = tmp_path / f"{place.name}.json"
        result = xrlhf("test", "tiny_sft_cpu", "--checkpoint", place, "--out", out, "--cfg-options", *OF_SFT)
        assert result.returncode == 0, result.stderr
        found[place.name] = json.loads(out.read_text(encoding="utf-8"))["loss"]
    assert found["sft_hf"] == pytest.approx(found[f"iter_{SFT_STEPS}.pth"], abs=1e-6)
    validated = [row for row in pipeline.log("sft") if "lr" not in row]
    assert found["sft_hf"] == pytest.approx(validated[-1]["val/loss"], abs=1e-6)


def test_adapters_are_merged(pipeline: Pipeline, xrlhf: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    """Validation of the checkpoint, adapters on the base, and of the export, compared with the same base."""
    base = f"pretrained_model_name_or_path={pipeline.folder / 'sft_hf'}"
    found = []
    for place, extra in (
        (pipeline.folder / "dpo" / f"iter_{DPO_STEPS}.pth", ["model.lora={'r': 4, 'lora_alpha': 16}"]),
        (pipeline.folder / "dpo_hf", []),
    ):
        out = tmp_path / f"{place.name}.json"
        options = ["--cfg-options", base, *OF_DPO, *extra]
        result = xrlhf("test", "tiny_dpo_cpu", "--checkpoint", place, "--out", out, *options)
        assert result.returncode == 0, result.stderr
        found.append(json.loads(out.read_text(encoding="utf-8")))
    assert found[0].keys() == found[1].keys()
    assert abs(found[0]["reward_margin"]) > 1e-3
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, abs=1e-4), name


def test_transformers_loads_and_stops_at_the_end_of_a_turn(pipeline: Pipeline) -> None:
    model = AutoModelForCausalLM.from_pretrained(pipeline.folder / "dpo_hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(pipeline.folder / "dpo_hf")
    ends = model.generation_config.eos_token_id
    closing = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert closing in (ends if isinstance(ends, list) else [ends])
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        written = model.generate(**asked, max_new_tokens=8, do_sample=False)
    assert written.shape[1] > asked["input_ids"].shape[1]


def test_resumed_equals_unbroken(
    pipeline: Pipeline,
    xrlhf: Callable[..., CompletedProcess[str]],
    assert_same_end: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    base = f"pretrained_model_name_or_path={pipeline.folder / 'sft_hf'}"
    for stage, step, last, options in (
        ("sft", 16, SFT_STEPS, OF_SFT),
        ("dpo", 6, DPO_STEPS, [base, *OF_DPO, "model.lora={'r': 4, 'lora_alpha': 16}", "lr=1e-2"]),
    ):
        run = tmp_path / stage
        run.mkdir()
        for name in (f"iter_{step}.pth", f"iter_{step}.pth.json"):
            shutil.copy(pipeline.folder / stage / name, run / name)
        result = xrlhf("train", f"tiny_{stage}_cpu", "--work-dir", run, "--resume", "--cfg-options", *options)
        assert result.returncode == 0, result.stderr
        assert_same_end(pipeline.folder / stage / f"iter_{last}.pth", run / f"iter_{last}.pth")


def test_a_cached_reference_trains_as_a_copy_does(
    pipeline: Pipeline, xrlhf: Callable[..., CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference runs once for the whole data; a second start finds what is on disk."""
    monkeypatch.setenv("XRLHF_CACHE", str(tmp_path / "cache"))
    base = f"pretrained_model_name_or_path={pipeline.folder / 'sft_hf'}"
    logs, printed = {}, {}
    for name, kind in (("copy", "copy"), ("cached", "cached"), ("again", "cached")):
        run = tmp_path / name
        options = ["--cfg-options", base, *OF_DPO, "lr=1e-3", f"model.reference={kind}"]
        result = xrlhf("train", "tiny_dpo_cpu", "--work-dir", run, *options)
        assert result.returncode == 0, result.stderr
        printed[name] = result.stdout
        files = run.glob("*/vis_data/scalars.json")
        rows = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
        logs[name] = [row.get("loss", row.get("val/loss")) for row in rows]
    assert "computing the reference's log-probabilities of 400 groups, once" in printed["cached"]
    assert "computing the reference" not in printed["again"]
    assert logs["cached"] == pytest.approx(logs["copy"], rel=1e-4)
    assert logs["again"] == logs["cached"]
    out = tmp_path / "tested.json"
    checkpoint = tmp_path / "cached" / f"iter_{DPO_STEPS}.pth"
    options = ["--cfg-options", base, *OF_DPO, "model.reference=cached"]
    result = xrlhf("test", "tiny_dpo_cpu", "--checkpoint", checkpoint, "--out", out, *options)
    assert result.returncode == 0, result.stderr
    assert json.loads(out.read_text(encoding="utf-8"))["loss"] == pytest.approx(logs["cached"][-1], rel=1e-5)


def test_what_is_learnt_can_be_looked_at(xrlhf: Callable[..., CompletedProcess[str]]) -> None:
    result = xrlhf("log-dataset", "tiny_sft_cpu", "--ids", "--cfg-options", OF_SFT[-2])
    assert result.returncode == 0, result.stderr
    learnt = [line for line in result.stdout.splitlines() if line.endswith("<- learnt")]
    assert "'<|im_end|>'" in learnt[-1] or "'<|im_end|>'" in learnt[-2]
    assert "scored here" not in result.stdout


def test_a_policy_is_no_reward_model(
    pipeline: Pipeline, xrlhf: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    checkpoint = pipeline.folder / "sft" / f"iter_{SFT_STEPS}.pth"
    result = xrlhf("convert", "pth_to_hf", "tiny_reward_cpu", checkpoint, tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr == (
        f"error: {checkpoint} is of another model than the recipe: it lacks backbone.score.weight; has "
        "backbone.lm_head.weight, which the model lacks. Use the recipe it was trained with\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["targets=None"], "set train_dataloader.dataset.targets to 'answer'"),
        (["targets=anser"], "targets must be 'answer', 'assistant', 'all' or None"),
        (["model.reference=copy"], "LanguageModelLoss reads no reference"),
        (["model.layout=rows"], "layout must be 'auto', 'packed' or 'padded'"),
    ],
)
def test_bad_options(
    options: list[str], message: str, xrlhf: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    result = xrlhf("train", "tiny_sft_cpu", "--work-dir", tmp_path / "run", "--cfg-options", *OF_SFT, *options)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()[-1]) > len(message)
