"""The report: numbers of hand-made runs, the page parsed, files written and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from xrlhf.errors import DataError
from xrlhf.evaluation.benchmark_data import LeftOut, ReadFile
from xrlhf.evaluation.benchmark_scores import BenchmarkScores, Example
from xrlhf.evaluation.benchmarks import BENCHMARKS
from xrlhf.evaluation.estimates import Bootstrap
from xrlhf.evaluation.report import FILES, ModelRun, build_report, is_report, read_report, write_report
from xrlhf.evaluation.report.page import render_page

HOSTILE = '<script>alert("x")</script><img src="https://example.org/x.png">'
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects what a browser would load, ids and text; fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [str(values[name]) for name in ("src", "href", "xlink:href", "srcset", "data") if name in values]
        self.ids += [str(values["id"])] if "id" in values else []
        assert not any(name.startswith("on") for name in values), "no script of any kind"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def run_of(name: str, scores: Sequence[Sequence[float]], **more: Any) -> ModelRun:
    """A model that gave these scores to pairs of one file."""
    rows = []
    for place, of_row in enumerate(scores):
        raw: Mapping[str, Any] = {"prompt": f"Q{place}", "chosen": "good one", "rejected": "bad", "subset": "s"}
        rows.append(BENCHMARKS["pairs"].read(raw, f"a.jsonl:{place + 1}").scored(of_row, [2, 1 + place]))
    example = Example("a.jsonl:2", HOSTILE, -1.5, 0.0, 1.5, HOSTILE, HOSTILE, HOSTILE)
    left_out = [LeftOut("a.jsonl:9", "too-long", "40 tokens, the limit is 30")]
    found = BenchmarkScores(rows=rows, left_out=left_out, examples=[example], **more)
    return ModelRun(name, {"path": name, "weights_digest": None}, {"pairs": found})


RUNS = [run_of("one", [(1, 0), (0, 1.5), (2, 0), (3, 1)]), run_of("two & <b>", [(1, 0), (1, 0), (0, 2), (3, 1)])]
FILES_READ = [("pairs", ReadFile("a.jsonl", "0" * 32, 5))]


def report_of(runs: Sequence[ModelRun] = RUNS) -> dict[str, Any]:
    return build_report(runs, [BENCHMARKS["pairs"]], FILES_READ, command="xrlhf eval one", bootstrap=Bootstrap(200))


def test_numbers() -> None:
    """The first model is right in 1, 3, 4; the second in 1, 2, 4: equal accuracies, and they disagree twice."""
    report = report_of()
    (benchmark,) = report["benchmarks"]
    one, two = benchmark["results"]
    assert one["scores"][0]["value"] == two["scores"][0]["value"] == 0.75
    assert one["scores"][0]["interval"] == "wilson"
    assert one["pairs"] == {
        "num_pairs": 4,
        "num_prompts": 4,
        "num_ties": 0,
        "accuracy": 0.75,
        "accuracy_ties_half": 0.75,
    }
    assert one["left_out"]["reasons"] == {"too-long": 1}
    (comparison,) = benchmark["comparisons"]
    assert (comparison["first"], comparison["second"], comparison["num_rows"]) == ("one", "two & <b>", 4)
    assert comparison["scores"][0]["difference"] == 0.0
    assert comparison["agreement"]["only_first"] == comparison["agreement"]["only_second"] == 1


def test_missing_and_incomplete_subsets_are_said() -> None:
    benchmark = BENCHMARKS["llmbar"]
    raw = {"input": "Q", "output_1": "a", "output_2": "b", "label": 1, "subset": "Natural"}
    run = ModelRun("m", {}, {"llmbar": BenchmarkScores(rows=[benchmark.read(raw, "a:1").scored([1, 0], [1, 1])])})
    report = build_report([run], [benchmark], [], bootstrap=Bootstrap(50))
    (result,) = report["benchmarks"][0]["results"]
    assert result["missing_subsets"] == ["Neighbor", "GPTInst", "GPTOut", "Manual"]
    assert result["incomplete_subsets"] == [{"subset": "Natural", "num_scored": 1, "num_expected": 100}]
    text = Page(render_page(report)).text
    assert "No rows of: Neighbor, GPTInst, GPTOut, Manual." in text
    assert "Natural: 1 of 100 rows scored." in text


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_makes_a_page_of_hardly_any_rows(name: str) -> None:
    """A single row: no interval, no temperature, one bin."""
    raw: dict[str, dict[str, Any]] = {
        "reward_bench": {"prompt": "Q", "chosen": "a", "rejected": "b", "subset": "hep-go"},
        "reward_bench_2": {
            **{"prompt": "Q", "chosen": ["a"], "rejected": ["b", "c"], "num_correct": 1},
            **{"subset": "Ties", "id": "ref:1"},
        },
        "rm_bench": {"prompt": "Q", "chosen": ["a"] * 3, "rejected": ["b"] * 3, "domain": "math"},
        "llmbar": {"input": "Q", "output_1": "a", "output_2": "b", "label": 1, "subset": "Manual"},
        "judgebench": {"question": "Q", "response_A": "a", "response_B": "b", "label": "A>B", "source": "mmlu-pro"},
        "pairs": {"prompt": "Q", "chosen": "a", "rejected": "b"},
    }
    benchmark = BENCHMARKS[name]
    read = benchmark.read(raw[name], "a.jsonl:1")
    num_answers = len(read.group.responses)
    row = read.scored([float(-place) for place in range(num_answers)], [1] * num_answers)
    run = ModelRun("m", {}, {name: BenchmarkScores(rows=[row])})
    report = build_report([run, ModelRun("n", {}, dict(run.scores))], [benchmark], [], bootstrap=Bootstrap(20))
    json.dumps(report, allow_nan=False)
    assert benchmark.title in Page(render_page(report)).text


def test_the_page_stands_alone_and_holds_no_markup_of_the_data() -> None:
    text = render_page(report_of())
    page = Page(text)
    assert page.links
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not {"script", "link", "iframe", "object", "img", "base"} & set(page.tags)
    assert "@import" not in text
    assert "url(" not in text
    assert len(page.ids) == len(set(page.ids))
    assert HOSTILE in page.text
    assert "two & <b>" in page.text
    assert page.tags.count("svg") == 8
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_every_plot_says_what_it_shows() -> None:
    text = render_page(report_of())
    assert text.count('role="img"') == text.count("<svg") == text.count("<desc id=")


def test_written_and_read_again(tmp_path: Path) -> None:
    """The same numbers come out, so a finished report can stand in place of its model."""
    report = report_of()
    write_report(report, RUNS, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(FILES)
    assert is_report(str(tmp_path))
    assert is_report(str(tmp_path / "report.json"))
    assert not is_report(str(tmp_path / "scores.jsonl"))
    runs, files = read_report(str(tmp_path))
    assert files == FILES_READ
    again, first = (json.loads(json.dumps(each)) for each in (report_of(runs), report))
    assert {**again, "created": 0} == {**first, "created": 0}
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    assert lines[0]["scores"] == [1, 0]
    assert lines[4]["error"] == "too-long: 40 tokens, the limit is 30"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "report.json").write_text("{"), r"report\.json: is not valid JSON"),
        (lambda folder: (folder / "report.json").write_text("[]"), "its schema is None version None; expected xrlhf"),
        (lambda folder: (folder / "scores.jsonl").unlink(), r"scores\.jsonl: cannot be read"),
        (lambda folder: (folder / "scores.jsonl").write_text(""), r"scores\.jsonl: has no scores of pairs"),
        (lambda folder: (folder / "scores.jsonl").write_text("{\n"), r"scores\.jsonl:1: is not valid JSON"),
        (
            lambda folder: (folder / "scores.jsonl").write_text(
                '{"model": "one", "benchmark": "pairs", "scores": []}\n'
            ),
            "is no whole report",
        ),
    ],
)
def test_damaged_reports(tmp_path: Path, damage: Any, message: str) -> None:
    write_report(report_of(), RUNS, tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        read_report(str(tmp_path))


def test_a_report_of_another_version(tmp_path: Path) -> None:
    write_report({**report_of(), "schema_version": 99}, RUNS, tmp_path)
    with pytest.raises(DataError, match=r"its schema is xrlhf\.eval version 99; expected xrlhf\.eval version 1"):
        read_report(str(tmp_path))
