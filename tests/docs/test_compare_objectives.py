"""The comparison of objectives: its figures by hand, and one short run of it."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from xrlhf.data.practice import practice_groups, practice_tokenizer
from xrlhf.registry import LOSSES

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tools" / "compare_objectives.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_objectives", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TOOL = load()


def test_calibration_error_by_hand() -> None:
    """|d| = log 3: the winner has 3/4. Of four such pairs three are right: calibrated. All four right: off by 1/4.

    A fifth pair with d = -log 19, the winner at .95 and wrong, is in a bin of its own: off by .95, one fifth of it.
    """
    d = math.log(3)
    assert TOOL.expected_calibration_error([d, d, d, -d]) == pytest.approx(0)
    assert TOOL.expected_calibration_error([d] * 4) == pytest.approx(0.25)
    assert TOOL.expected_calibration_error([d, d, d, -d, -math.log(19)]) == pytest.approx(0.19)
    assert TOOL.expected_calibration_error([0.0, 1000.0]) == pytest.approx(0)


def test_figures_by_hand() -> None:
    """Differences log 3, 0, -log 3: right 1.5 of 3; log-loss (log(4/3) + log 2 + log 4) / 3."""
    result = TOOL.summarise("one", [math.log(3), 0.0, -math.log(3)], 2.0)
    assert result.accuracy == 0.5
    assert result.log_loss == pytest.approx((math.log(4 / 3) + math.log(2) + math.log(4)) / 3)
    assert result.mean_margin == pytest.approx(0)
    assert result.accuracy_low < 0.5 < result.accuracy_high
    assert TOOL.markdown([result]).splitlines()[-1].startswith("| one | 0.500 | ")


@pytest.mark.parametrize("name", TOOL.OBJECTIVES)
def test_every_objective_can_be_built(name: str) -> None:
    import xrlhf.losses

    for spec in TOOL.OBJECTIVES[name].values():
        assert isinstance(spec, Mapping)
        kind = getattr(xrlhf.losses, spec["type"].rpartition(".")[2])
        LOSSES.build({**spec, "type": kind})


@pytest.mark.slow
def test_a_short_run(tmp_path: Path, command_environment: dict[str, str]) -> None:
    """Plackett-Luce of pairs is Bradley-Terry: the same figures. A second call finds the runs done."""
    rows = [
        {
            side: f"\n\nHuman: {group.prompt[-1]['content']}\n\nAssistant: {response[0]['content']}"
            for side, response in zip(("chosen", "rejected"), group.responses, strict=True)
        }
        for group in practice_groups(80)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    practice_tokenizer().save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, str(FILE), "--data", "pairs.jsonl", "--tokenizer", "tokenizer", "--out", "out"]
    command += [
        "--only",
        "Bradley-Terry",
        "--only",
        "Plackett-Luce",
        "--cfg-options",
        "train_cfg.max_epochs=0.5",
        "max_length=256",
    ]
    for _ in range(2):
        run = subprocess.run(
            command, cwd=tmp_path, env=command_environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr
    first, second = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert first["num_pairs"] > 5
    for name in ("num_pairs", "accuracy", "log_loss", "calibration_error"):
        assert second[name] == pytest.approx(first[name], abs=1e-4), name
    assert "| Plackett-Luce | " in run.stdout
