"""``xrlhf eval``: what a user can mend, in one clear line, before anything is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_models import byte_tokenizer, tiny_backbone

from xrlhf.cli.eval import _one_value_each
from xrlhf.cli.main import main
from xrlhf.export import save_reward_model
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer

PAIR = {"prompt": "Q", "chosen": "good", "rejected": "bad"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "reward_hf"
    tokenizer = prepare_tokenizer(byte_tokenizer())
    save_reward_model(RewardModel(tiny_backbone(vocab_size=260), tokenizer=tokenizer), tokenizer, out)
    return out


@pytest.fixture(autouse=True)
def in_tmp_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package_logger: None) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(json.dumps(PAIR) + "\n" + json.dumps({**PAIR, "prompt": "R"}) + "\n")


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: str | Path) -> str:
        status = main(["eval", *map(str, arguments)])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert (status, len(lines)) == (2, 1)
        return lines[0].removeprefix("error: ")

    return run


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        (["m", "--data", "a", "b", "--out", "o"], ["m", "--data", "a", "--data", "b", "--out", "o"]),
        (["--data", "a", "--data", "b", "c"], ["--data", "a", "--data", "b", "--data", "c"]),
        (["m", "--out", "o"], ["m", "--out", "o"]),
        (["--data=a", "m"], ["--data=a", "m"]),
    ],
)
def test_files_may_follow_one_data(given: list[str], completed: list[str]) -> None:
    assert _one_value_each(given) == completed


def test_a_report_is_written_once(exported: Path, complaint: Callable[..., str], tmp_path: Path) -> None:
    command = [str(exported), "--data", "pairs.jsonl", "--out", "out", "--device", "cpu"]
    assert main(["eval", *command]) == 0
    first = (tmp_path / "out/report.json").read_text()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "scores.jsonl"]
    assert complaint(*command) == "out exists and is not empty: choose another directory, or remove it"
    assert main(["eval", *command, "--overwrite", "--examples", "0"]) == 0
    again = json.loads((tmp_path / "out/report.json").read_text())
    assert again["benchmarks"][0]["results"][0]["examples"] == []
    assert again["benchmarks"][0]["results"][0]["scores"] == json.loads(first)["benchmarks"][0]["results"][0]["scores"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "pairs.jsonl"]


def test_overwrite_takes_nothing_but_reports(exported: Path, complaint: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("mine")
    line = complaint(exported, "--data", "pairs.jsonl", "--out", "out", "--overwrite")
    assert line == "out holds 'thesis.tex', which is no part of what would be replaced: choose another directory"
    assert (tmp_path / "out/thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("rows", "options", "line"),
    [
        ("", [], "rows.jsonl: zero rows; the file is empty"),
        ('{"question": "Q"}', [], "rows.jsonl:1: the columns question are of no benchmark (reward_bench, "),
        (
            '{"input": "Q", "output_1": "a", "output_2": "b", "label": 0, "subset": "Natural"}',
            [],
            "rows.jsonl:1: label is 0; expected 1 or 2 (LLMBar); --skip-bad leaves such rows out and names them",
        ),
        (
            json.dumps(PAIR),
            ["--benchmark", "rewardbench"],
            "--benchmark rewardbench: no benchmark has this name; known",
        ),
        (json.dumps(PAIR), ["--format", "orcas"], "no format is called 'orcas'"),
        (
            json.dumps(PAIR),
            ["--format", "pair", "--benchmark", "llmbar"],
            "--format is for rows of pairs, and --benchmark is llmbar: leave one of them out",
        ),
        (json.dumps(PAIR), ["--max-length", "3"], "rows.jsonl:1: "),
        (json.dumps(PAIR), ["--truncation", "middle"], "truncation must be 'drop', 'prompt' or 'end', got 'middle'"),
        (json.dumps(PAIR), ["--dtype", "int8"], "dtype must be 'float32', 'bfloat16' or 'float16', got 'int8'"),
    ],
)
def test_what_is_refused(
    exported: Path, complaint: Callable[..., str], tmp_path: Path, rows: str, options: list[str], line: str
) -> None:
    Path("rows.jsonl").write_text(rows)
    assert complaint(exported, "--data", "rows.jsonl", "--out", "out", *options).startswith(line)
    assert not (tmp_path / "out").exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pairs.jsonl", "rows.jsonl"]


def test_a_model_without_a_head(complaint: Callable[..., str], tmp_path: Path, exported: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config: dict[str, Any] = {"vocab_size": 260, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**config, num_attention_heads=2, pad_token_id=0)).save_pretrained("lm")
    byte_tokenizer().save_pretrained("lm")
    line = complaint("lm", "--data", "pairs.jsonl", "--out", "out")
    assert line.startswith(
        "'lm' holds no score head: it is a language model, not a reward model; name what 'xrlhf conv"
    )
    assert complaint("gone/", "--data", "pairs.jsonl", "--out", "out").startswith("no model at 'gone/'")
    assert not (tmp_path / "out").exists()


def test_models_and_reports(exported: Path, complaint: Callable[..., str]) -> None:
    assert complaint(exported, "--out", "out") == (
        f"{exported} is no finished report, so it has to be scored: name files with --data"
    )
    assert main(["eval", str(exported), "--data", "pairs.jsonl", "--out", "a"]) == 0
    assert complaint("a", "--data", "pairs.jsonl", "--out", "b") == (
        "every MODEL is a finished report, and --data names files to score: leave --data out"
    )
    assert main(["eval", "a", str(exported), "--data", "pairs.jsonl", "--out", "both"]) == 0
    names = [model["name"] for model in json.loads(Path("both/report.json").read_text())["models"]]
    assert names == [f"{exported} (1)", f"{exported} (2)"]
    assert main(["eval", "both", "--out", "copy"]) == 0
    copied = json.loads(Path("copy/report.json").read_text())
    assert [model["name"] for model in copied["models"]] == names
    assert copied["benchmarks"][0]["comparisons"][0]["scores"][0]["difference"] == 0.0
