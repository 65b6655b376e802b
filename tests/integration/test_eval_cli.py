"""``xrlhf eval`` through the real command line, on a tiny model that was trained and exported by it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xrlhf.data.practice import practice_groups

Run = Callable[..., subprocess.CompletedProcess[str]]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, xrlhf_in: Run) -> Path:
    """Two exported models, one trained longer than the other, and rows of three benchmarks with practice texts."""
    place = tmp_path_factory.mktemp("eval")
    trained = xrlhf_in(
        place,
        *("train", "tiny_reward_cpu", "--work-dir", "run", "--cfg-options"),
        *("train_cfg.max_steps=12", "train_cfg.max_epochs=None", "default_hooks.checkpoint.interval=6"),
    )
    assert trained.returncode == 0, trained.stderr
    for step in (6, 12):
        result = xrlhf_in(
            place, "convert", "pth_to_hf", "tiny_reward_cpu", f"run/iter_{step}.pth", f"models/step_{step}"
        )
        assert result.returncode == 0, result.stderr
    groups = [
        (group.prompt[-1]["content"], [answer[-1]["content"] for answer in group.responses])  # type: ignore[index]
        for group in practice_groups(60)
    ]
    pairs = [{"prompt": prompt, "chosen": answers[0], "rejected": answers[-1]} for prompt, answers in groups]
    write(place / "pairs.jsonl", [*pairs, {**pairs[0], "chosen": "word " * 600}])
    write(
        place / "bench.jsonl",
        [{**pair, "subset": ("hep-go", "math-prm")[i % 2], "id": i} for i, pair in enumerate(pairs)],
    )
    write(
        place / "ranked.jsonl",
        [
            {
                **{"id": str(i), "prompt": prompt, "chosen": answers[:1], "rejected": answers[1:], "num_correct": 1},
                "subset": "Focus",
            }
            for i, (prompt, answers) in enumerate(groups)
        ],
    )
    return place


@pytest.mark.slow
def test_two_models_and_three_benchmarks(folder: Path, xrlhf_in: Run) -> None:
    models = ["models/step_6", "models/step_12"]
    data = ["pairs.jsonl", "bench.jsonl", "ranked.jsonl"]
    result = xrlhf_in(folder, "eval", *models, "--data", *data, "--out", "reports/both", "--max-length", "400")
    assert result.returncode == 0, result.stderr
    assert "wrote reports/both/report.html" in result.stdout
    assert "RewardBench, step_12 against step_6: " in result.stdout
    report = json.loads((folder / "reports/both/report.json").read_text())
    by_name = {benchmark["name"]: benchmark for benchmark in report["benchmarks"]}
    assert list(by_name) == ["reward_bench", "reward_bench_2", "pairs"]
    assert report["command"].startswith("xrlhf eval models/step_6 models/step_12 --data pairs.jsonl bench.jsonl")
    for result_of_model in by_name["pairs"]["results"]:
        assert result_of_model["num_scored"] == 60
        assert result_of_model["left_out"]["rows"][0]["location"] == "pairs.jsonl:61"
        assert result_of_model["left_out"]["reasons"] == {"too-long": 1}
    assert by_name["reward_bench"]["comparisons"][0]["num_rows"] == 60

    # Every number stands on the rows' scores, which equal those of `xrlhf score`.
    scored = xrlhf_in(folder, "score", models[1], "--data", "bench.jsonl", "--out", "scored.jsonl")
    assert scored.returncode == 0, scored.stderr
    wanted = [json.loads(line)["scores"] for line in (folder / "scored.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (folder / "reports/both/scores.jsonl").read_text().splitlines()]
    found = [line["scores"] for line in lines if (line["model"], line["benchmark"]) == ("step_12", "reward_bench")]
    assert found == [pytest.approx(scores, abs=1e-5) for scores in wanted]
    go, math = ([float(pair[0] > pair[1]) for pair in wanted[start::2]] for start in (0, 1))
    section = (164 * sum(go) / len(go) + 984 * sum(math) / len(math)) / 1148
    assert by_name["reward_bench"]["results"][1]["scores"][0]["value"] == pytest.approx(section)


@pytest.mark.slow
def test_finished_reports_compare_without_scoring(folder: Path, xrlhf_in: Run) -> None:
    for step in (6, 12):
        result = xrlhf_in(
            folder, "eval", f"models/step_{step}", "--data", "bench.jsonl", "--out", f"reports/step_{step}"
        )
        assert result.returncode == 0, result.stderr
    result = xrlhf_in(folder, "eval", "reports/step_6", "reports/step_12/report.json", "--out", "reports/compared")
    assert result.returncode == 0, result.stderr
    report = json.loads((folder / "reports/compared/report.json").read_text())
    assert [model["name"] for model in report["models"]] == ["step_6", "step_12"]
    assert [file["name"] for file in report["data"]] == ["bench.jsonl"]
    (comparison,) = report["benchmarks"][0]["comparisons"]
    assert comparison["num_rows"] == 60
    single = json.loads((folder / "reports/step_12/report.json").read_text())
    assert report["benchmarks"][0]["results"][1] == single["benchmarks"][0]["results"][0]
