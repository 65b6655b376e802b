"""The page of a run: what it reads, what it draws, and what it refuses."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrlhf.cli.main import main
from xrlhf.errors import DataError
from xrlhf.run_report import read_run, read_runs, render_runs
from xrlhf.run_report.plots import curve_plot, thinned

NOON = datetime(2026, 1, 2, 12, 0)
DATA = {
    "train": {
        "<own>": {
            "num_rows": 1200,
            "num_groups_used": 1190,
            "num_tokens": 5000,
            "left_out": {"too-long": 10, "of-tomorrow": 1},
        }
    }
}


def make_run(folder: Path, steps: int = 20, **extra: Any) -> Path:
    """A directory as two starts of a run leave it, the second from half its steps on."""
    for start, (first, last) in (("20260101_000000", (1, steps)), ("20260102_000000", (steps // 2 + 1, steps))):
        scalars = folder / start / "vis_data" / "scalars.json"
        scalars.parent.mkdir(parents=True)
        lines = [
            {"loss": 1 / step, "lr": 1e-4, "tokens_per_second": 100.0 * step, "num_tokens": 7, "step": step, **extra}
            for step in range(first, last + 1)
        ]
        lines.append({"val/accuracy": 0.75, "val/num_groups": 400, "step": steps})
        scalars.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"loss": 0.', encoding="utf-8")
    (folder / "20260102_000000" / "environment.txt").write_text("torch: 9.9\n", encoding="utf-8")
    (folder / "data_report.json").write_text(json.dumps(DATA), encoding="utf-8")
    (folder / f"{folder.name}.py").write_text("lr = 0.0001\n", encoding="utf-8")
    (folder / f"iter_{steps}.pth").touch()
    samples = [
        {"step": 5, "prompt": [{"role": "user", "content": "Say <b>hi</b>"}], "response": "hi & bye", "reward": 0.25},
        {"step": 10, "prompt": "plain", "response": "text"},
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples), encoding="utf-8")
    return folder


class Text(HTMLParser):
    """The text of a page, and whether every tag that is opened is closed."""

    VOID = ("meta", "br", "line", "circle", "rect", "polyline", "path")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.outside: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [f"{tag} {name}" for name, value in attrs if name in ("src", "href") and value[:1] != "#"]  # type: ignore[index]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_run_is_read(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "mine"))
    assert run.name == "mine"
    assert run.starts == ("20260101_000000", "20260102_000000")
    assert run.checkpoints == ("iter_20.pth",)
    assert run.last_step == 20
    assert run.last("loss") == pytest.approx(1 / 20)
    assert len(run.curves["loss"]) == 20
    # 200 to 2,000 without the first point of 100: the mean is 1,100.
    assert run.mean("tokens_per_second") == pytest.approx(1100)
    assert run.environment == "torch: 9.9\n"
    assert run.recipe == "lr = 0.0001\n"


def test_the_page_holds_what_the_run_left(tmp_path: Path) -> None:
    page = render_runs([read_run(make_run(tmp_path / "mine"))], created=NOON)
    parsed = Text(page)
    text = " ".join(" ".join(parsed.text).split())
    assert parsed.outside == [], "nothing is loaded"
    for expected in (
        "2026-01-02 12:00",
        "What is learnt",
        "tokens_per_second",
        "Results of the last validation",
        "0.75",
        "10: longer than the token limit; 1: of-tomorrow",
        "Say <b>hi</b>",
        "hi & bye",
        "Step 5, reward +0.250",
        "torch: 9.9",
        "lr = 0.0001",
        "<own>",
    ):
        assert expected in text, expected
    assert "<b>hi" not in page
    assert "num_tokens" not in text


def test_several_runs_share_their_plots(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", steps=8)])
    assert [run.name for run in runs] == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]
    page = render_runs(runs, created=NOON)
    loss = next(svg for svg in re.findall(r"<svg.*?</svg>", page) if ">loss</title>" in svg)
    assert loss.count("<polyline") == 2


def test_a_bare_run_has_a_page(tmp_path: Path) -> None:
    scalars = tmp_path / "run" / "20260101_000000" / "vis_data" / "scalars.json"
    scalars.parent.mkdir(parents=True)
    scalars.write_text('{"loss": NaN, "step": 1}\n', encoding="utf-8")
    page = render_runs([read_run(tmp_path / "run")], created=NOON)
    assert "The directory holds neither." in page
    assert "<svg" not in page


@pytest.mark.parametrize("page", ["one", "two"])
def test_the_command_writes_the_page(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / name) for name in ("one", "two")[: 1 if page == "one" else 2]]
    out = [] if page == "one" else ["--out", str(tmp_path / "page.html")]
    place = runs[0] / "run.html" if page == "one" else tmp_path / "page.html"
    assert main(["report", *map(str, runs), *out]) == 0
    assert capsys.readouterr().out == f"wrote {place}\n"
    Text(place.read_text(encoding="utf-8"))


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["nowhere"], "there is no such directory"),
        ([str(tmp_path / "empty")], "holds no logged step"),
        ([str(run), str(run), "--out", str(tmp_path / "x.html")], "a run is named twice"),
        ([str(run), str(run)], "say with --out FILE.html"),
        ([str(run), "--out", str(tmp_path)], "is a folder"),
    ):
        assert main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err
    (run / "data_report.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"data_report\.json is damaged"):
        read_run(run)


# ------------------------------------------------------------------------------------------------ plots


def test_thinning_keeps_means_and_the_last_point() -> None:
    # Ten points to four: parts of four of the first nine, then the last as it is.
    points = [(step, float(step)) for step in range(10)]
    assert thinned(points, 4) == [(1.5, 1.5), (5.5, 5.5), (8.5, 8.5), (9.0, 9.0)]
    assert thinned(points[:4], 4) == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]


values = st.floats(allow_nan=True, allow_infinity=True, width=32)


@given(
    st.dictionaries(st.text(max_size=30), st.lists(st.tuples(st.integers(0, 10**7), values), max_size=30), max_size=9)
)
def test_any_curves_make_a_picture_inside_its_frame(curves: dict[str, list[tuple[int, float]]]) -> None:
    ordered = {
        "".join(c for c in label if c.isprintable()): sorted(dict(points).items()) for label, points in curves.items()
    }
    picture = curve_plot(ordered, "p", "title")
    finite = [value for points in ordered.values() for _, value in points if math.isfinite(value)]
    assert bool(picture) == bool(finite)
    if not picture:
        return
    for element in ET.fromstring(picture).iter():
        for pair in element.get("points", "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 360
            assert 0 <= y <= 240


def test_the_curve_goes_from_corner_to_corner() -> None:
    """From (0, 0) to (10, 1): the axes are 46 to 348 wide; below the line of the legend, 32 to 200 high."""
    picture = ET.fromstring(curve_plot({"a": [(0, 0.0), (10, 1.0)]}, "p", "t"))
    (line,) = [element for element in picture.iter() if element.tag == "polyline"]
    assert line.get("points") == "46.0,200.0 348.0,32.0"


@pytest.mark.parametrize(
    ("top", "labels"),
    [
        (1.0, ["0", "0.25", "0.5", "0.75", "1"]),
        (9000.0, ["0", "2500", "5000", "7500", "10k"]),
        (2e6, ["0", "500k", "1M"]),
    ],
)
def test_ticks_are_short_and_round(top: float, labels: list[str]) -> None:
    picture = curve_plot({"a": [(0, 0.0), (10, top)]}, "p", "t")
    found = re.findall(r'<text class="tick" x="41"[^>]*>([^<]*)<', picture)
    assert found[: len(labels)] == labels
    assert all(len(label) <= 6 for label in found)
