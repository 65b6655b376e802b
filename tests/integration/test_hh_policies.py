"""The policy recipes on real rows, a few steps each: hh-rlhf from SFT to DPO, and sets of LLaMA-Factory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SFT_STEPS, DPO_STEPS, GROUPS = 10, 4, 8
SHORT = [
    *(f"groups_per_step={GROUPS}", "train_cfg.max_epochs=None", "default_hooks.curves=None"),
    *("default_hooks.logger.interval=1", "log_processor.window_size=1"),
]
FEW = ["val_dataloader.dataset.max_groups=40", "model.backbone.num_hidden_layers=1", "lr=5e-3"]


@dataclass(frozen=True)
class Runs:
    """Where the stages of hh-rlhf are, and where the data is."""

    folder: Path
    data: Path
    sft_options: list[str]


def logged(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was logged of training and of validation."""
    (file,) = run.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "lr" in row], [row for row in rows if "val/loss" in row]


def succeeded(result: CompletedProcess[str]) -> CompletedProcess[str]:
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result


@pytest.fixture(scope="module")
def runs(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory, xrlhf_in: Callable[..., CompletedProcess[str]]
) -> Runs:
    folder = tmp_path_factory.mktemp("hh")
    data = f"data_path={shared_data / 'hh-rlhf' / 'harmless-base.test.jsonl.gz'}"
    sft = [data, f"tokenizer_path={shared_data / 'tokenizer' / 'tokenizer.json'}", *SHORT, *FEW]
    sft.append(f"train_cfg.max_steps={SFT_STEPS}")
    checkpoint = folder / "sft" / f"iter_{SFT_STEPS}.pth"
    dpo = [data, f"pretrained_model_name_or_path={folder / 'sft_hf'}", *SHORT, FEW[0], "lr=1e-3"]
    for command in (
        ["train", "tiny_sft_hh_cpu", "--work-dir", folder / "sft", "--cfg-options", *sft],
        ["convert", "pth_to_hf", "tiny_sft_hh_cpu", checkpoint, folder / "sft_hf", "--cfg-options", *sft],
        [
            *("train", "tiny_dpo_hh_cpu", "--work-dir", folder / "dpo", "--cfg-options", *dpo),
            f"train_cfg.max_steps={DPO_STEPS}",
        ],
    ):
        succeeded(xrlhf_in(folder, *command))
    return Runs(folder, shared_data, sft)


def test_fine_tuning_on_the_better_answers(runs: Runs) -> None:
    """A new model finds all 2,000 tokens alike: ln 2000 = 7.6. Of 2,312 rows those with a blank answer are left out."""
    trained, validated = logged(runs.folder / "sft")
    assert trained[0]["loss"] == pytest.approx(7.6, abs=0.15)
    assert trained[-1]["loss"] < trained[0]["loss"] - 0.1
    assert validated[-1]["val/loss"] < trained[0]["loss"] - 0.1
    report = json.loads((runs.folder / "sft" / "data_report.json").read_text(encoding="utf-8"))
    assert report["train"]["hh"]["num_groups_used"] + report["val"]["hh"]["num_groups_used"] > 40
    assert report["train"]["hh"]["num_rows"] == 2312


def test_preferences_on_the_same_rows(runs: Runs) -> None:
    """ln 2 before the first update; chosen and rejected answers alike likely on the whole."""
    trained, validated = logged(runs.folder / "dpo")
    assert trained[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert trained[0]["reward_acc"] == 0.5
    assert trained[-1]["loss"] != trained[0]["loss"]
    assert 0.3 < validated[-1]["val/reward_acc"] < 0.8


@pytest.mark.parametrize(
    ("name", "map_fn"),
    [
        ("glaive_toolcall_en_demo.json", "sharegpt_map_fn"),
        ("identity.json", "alpaca_map_fn"),
        ("kto_en_demo.json", "kto_map_fn"),
    ],
)
def test_other_sources_in_the_recipe(
    name: str, map_fn: str, runs: Runs, xrlhf: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    """Tool calls, instructions, and answers of KTO whatever their label, by naming another source."""
    source = {"source": str(runs.data / "llama-factory" / name), "map_fn": f"xrlhf.data.map_fns.{map_fn}"}
    options = [*runs.sft_options, f"sources=[{source}]", "train_cfg.max_steps=2", "max_length=512"]
    more = ["train_dataloader.dataset.max_left_out_share=0.9", "val_dataloader.dataset.max_left_out_share=0.9"]
    succeeded(xrlhf("train", "tiny_sft_hh_cpu", "--work-dir", "run", "--cfg-options", *options, *more))
    trained, validated = logged(tmp_path / "run")
    assert [len(trained), len(validated)] == [2, 1]
    assert trained[1]["loss"] < trained[0]["loss"] + 0.1


def test_thumbs_up_and_down(runs: Runs, xrlhf: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    """KTO on LLaMA-Factory's labels: 1/2 for every answer before the first update, and a divergence from then on."""
    source = {
        "source": str(runs.data / "llama-factory" / "kto_en_demo.json"),
        "map_fn": "xrlhf.data.map_fns.kto_map_fn",
    }
    options = [
        *(f"pretrained_model_name_or_path={runs.folder / 'sft_hf'}", f"sources=[{source}]", *SHORT, FEW[0]),
        *("model.loss={'type': 'xrlhf.losses.policy.KTOLoss'}", "model.reference=auto", "lr=5e-3"),
        *("train_cfg.max_steps=4", "train_dataloader.dataset.max_left_out_share=0.9"),
        "val_dataloader.dataset.max_left_out_share=0.9",
    ]
    succeeded(xrlhf("train", "tiny_dpo_hh_cpu", "--work-dir", "run", "--cfg-options", *options))
    trained, validated = logged(tmp_path / "run")
    assert trained[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert trained[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert max(row["kl"] for row in trained) > 0.01
    assert {"val/chosen_reward_mean", "val/rejected_reward_mean"} <= validated[-1].keys()
